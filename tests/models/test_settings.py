"""A network's config.json with values that mean nothing: the file, the key and what was expected are named."""

import json
import re
import shutil

import diffusers
import pytest
import torch

from pcpo_ray import models
from pcpo_ray.errors import ModelError
from pcpo_ray.models import settings
from tests.support import families, small

CPU = torch.device("cpu")


def with_setting(model, folder, part, key, value):
    copied = shutil.copytree(model, folder / model.name)
    path = copied / part / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    return copied


@pytest.mark.parametrize(
    ("part", "key", "value", "such"),
    [
        ("unet", "norm_eps", None, "1e-05"),
        ("unet", "norm_eps", [1], "1e-05"),
        ("unet", "freq_shift", None, "0"),
        ("unet", "in_channels", "4", "4"),
        ("vae", "latent_channels", "x", "4"),
        ("vae", "norm_num_groups", None, "32"),
    ],
)
def test_what_is_no_number_is_named_before_anything_is_loaded(small_sd, tmp_path, part, key, value, such):
    run = small.run(with_setting(small_sd, tmp_path, part, key, value))
    expected = rf"{part}/config.json has {key}: {json.dumps(value)}, expected a number such as {such}".replace(
        "[", r"\["
    )
    with pytest.raises(ModelError, match=expected):
        models.schedule_of(models.folder_of(run.model), run.model, run.sampling)


@pytest.mark.parametrize(
    ("part", "key", "value", "wanted"),
    [
        ("unet", "act_fn", None, 'a text such as "silu"'),
        ("unet", "norm_num_groups", None, "a number such as 32"),
        ("unet", "attention_head_dim", "x", "a list or a number such as 8"),
        ("vae", "act_fn", None, 'a text such as "silu"'),
    ],
)
def test_a_network_that_cannot_be_made_names_the_values_that_may_be_why(small_sd, tmp_path, part, key, value, wanted):
    run = small.run(with_setting(small_sd, tmp_path, part, key, value))
    with pytest.raises(ModelError, match=rf"{part} cannot be loaded as a .*{part}/config.json has {key}: .* {wanted}"):
        models.load(run.model, run.sampling, seed=0, device=CPU)


def test_a_length_of_texts_that_is_no_number_is_named(small_sd, tmp_path):
    run = small.run(with_setting(small_sd, tmp_path, "text_encoder", "max_position_embeddings", "x"))
    with pytest.raises(ModelError, match=r"text_encoder/config.json has max_position_embeddings: 'x'; expected"):
        models.folder_of(run.model)


def test_published_configs_with_null_for_a_switch_are_taken(tmp_path):
    """As SDXL's: "upcast_attention": null, where diffusers' annotation has no null."""
    found = {"upcast_attention": None, "mid_block_only_cross_attention": None, "out_channels": 4, "sample_size": [8, 8]}
    settings.check(tmp_path, found, diffusers.UNet2DConditionModel)
    settings.check(tmp_path, {"force_upcast": False, "shift_factor": None}, diffusers.AutoencoderKL)
    settings.check(tmp_path, {"out_channels": None, "guidance_embeds": True}, diffusers.FluxTransformer2DModel)
    assert settings.suspects(tmp_path, {"patch_size": 1}, diffusers.FluxTransformer2DModel) == ""


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("unet", "use_kv_cache", True),
        ("unet", "zero_cond_t", True),
        ("unet", "qk_scale", 0.5),
        ("unet", "sliding_windows", [1, 2]),
        ("vae", "decoder_noise", "gaussian"),
    ],
)
def test_a_setting_that_the_class_does_not_read_is_refused_by_name(small_sd, tmp_path, part, key, value):
    run = small.run(with_setting(small_sd, tmp_path, part, key, value))
    expected = re.escape(f"{part}/config.json has {key}: {json.dumps(value)}, which ") + ".* does not read"
    with pytest.raises(ModelError, match=expected):
        models.schedule_of(models.folder_of(run.model), run.model, run.sampling)


@pytest.mark.parametrize("kind", families.FAMILIES)
def test_every_newer_kind_refuses_a_cache_and_takes_it_switched_off(kind, model, tmp_path):
    for value in (False, None):
        run = small.run(small.rewritten(model(kind), tmp_path, "transformer/config.json", use_kv_cache=value))
        models.class_of(run.model).described(models.folder_of(run.model))
        shutil.rmtree(tmp_path / model(kind).name)
    run = small.run(small.rewritten(model(kind), tmp_path, "transformer/config.json", use_kv_cache=True))
    with pytest.raises(ModelError, match=r"transformer/config\.json has use_kv_cache: true, which \w+Transformer2D"):
        models.class_of(run.model).described(models.folder_of(run.model))


def test_published_settings_that_nothing_depends_on_are_taken(tmp_path):
    settings.check_read(tmp_path, {"pooled_projection_dim": 768}, diffusers.QwenImageTransformer2DModel)
    settings.check_read(tmp_path, {"force_upcast": True, "_name_or_path": "x"}, diffusers.AutoencoderKLFlux2)
    settings.check_read(tmp_path, {"zero_cond_t": True}, diffusers.QwenImageTransformer2DModel)


def test_a_factor_that_the_vae_has_no_use_for_is_refused(model, tmp_path):
    folder = small.rewritten(model("flux2_klein"), tmp_path, "vae/config.json", scaling_factor=0.5)
    run = small.run(folder)
    with pytest.raises(ModelError, match=r"vae/config\.json has scaling_factor: 0\.5, which AutoencoderKLFlux2"):
        models.class_of(run.model).described(models.folder_of(run.model))


@pytest.mark.parametrize(
    ("model_of", "changes"),
    [
        ("small_sd", {"num_class_embeds": 4}),
        ("small_sd", {"class_embed_type": "timestep"}),
        ("small_sd", {"addition_embed_type": "text_time"}),
        ("small_sd", {"encoder_hid_dim_type": "image_proj"}),
        ("small_sd", {"dual_cross_attention": True}),
        ("small_sdxl", {"addition_embed_type": "text"}),
        ("small_flux", {"patch_size": 2}),
        ("chroma", {"patch_size": 2}),
        ("flux2_klein", {"patch_size": 2}),
        ("qwen_image", {"use_additional_t_cond": True}),
        ("qwen_image_21", {"patch_size": 2}),
        ("z_image", {"all_patch_size": [1, 4], "all_f_patch_size": [1, 1]}),
        ("z_image", {"all_f_patch_size": [2]}),
    ],
)
def test_inputs_and_shapes_of_another_pipeline_are_refused(request, model, tmp_path, model_of, changes):
    path = request.getfixturevalue(model_of) if model_of.startswith("small") else model(model_of)
    part = "unet" if (path / "unet").is_dir() else "transformer"
    run = small.run(small.rewritten(path, tmp_path, f"{part}/config.json", **changes))
    key = next(iter(changes))
    with pytest.raises(ModelError, match=rf"{part}/config\.json has .*{key}: .*; expected "):
        models.class_of(run.model).described(models.folder_of(run.model))
