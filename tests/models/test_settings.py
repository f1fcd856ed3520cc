"""A network's config.json with values that mean nothing: the file, the key and what was expected are named."""

import json
import shutil

import diffusers
import pytest
import torch

from pcpo_ray import models
from pcpo_ray.errors import ModelError
from pcpo_ray.models import settings
from tests.support import small

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
