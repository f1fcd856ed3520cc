"""Numbers that are not finite end where they arise, by the name of the stage and with a remedy that helps."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from pcpo_ray import models
from pcpo_ray.data.seeds import generator
from pcpo_ray.errors import ModelError
from pcpo_ray.models.finite import is_finite
from tests.support import small

CPU = torch.device("cpu")
TEXT = "a red circle above a blue square"


def load(path, **changes):
    run = small.run(path, **changes)
    return models.load(run.model, run.sampling, seed=0, device=CPU)


def spoilt(model, folder, part, value):
    """A copy of a model in one of whose parts the last number of a weight is `value`, and the weight's name."""
    copy = shutil.copytree(model, folder / model.name)
    path = next((copy / part).glob("*.safetensors"))
    weights = load_file(path)
    name = sorted(key for key in weights if key.endswith("weight"))[0]
    weights[name].view(-1)[-1] = value
    save_file(weights, path, {"format": "pt"})
    return copy, name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_finite_is_what_every_number_of_a_tensor_is(dtype):
    kind = getattr(torch, dtype)
    largest = torch.finfo(kind).max
    assert is_finite(torch.full((3, 1000), largest, dtype=kind))
    assert is_finite(torch.tensor([-largest, largest], dtype=kind)) and is_finite(torch.empty(0, dtype=kind))
    for value in (float("nan"), float("inf"), -float("inf")):
        assert not is_finite(torch.tensor([1.0, value, largest, -largest], dtype=kind))
    assert not is_finite(torch.tensor([float("inf"), -float("inf")], dtype=kind))
    assert is_finite(torch.empty(3, device="meta"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_weights_are_named_as_they_are_loaded(small_sd, tmp_path, part, value):
    folder, name = spoilt(small_sd, tmp_path, part, value)
    denoiser = load(small_sd)  # loading is what fails, not making the denoiser's other half
    with pytest.raises(ModelError, match=rf"{folder / part} hold numbers that are not finite: .*{name[-20:]}.*copy"):
        load(folder).encode([TEXT])
    assert denoiser.encode([TEXT])


def test_weights_that_float16_cannot_hold_ask_for_another_dtype(small_sd, tmp_path):
    folder, _ = spoilt(small_sd, tmp_path, "unet", 1e6)
    with pytest.raises(ModelError, match=r"not finite.*model\.dtype=bfloat16 or float32"):
        load(folder, model__dtype="float16")
    for dtype in ("bfloat16", "float32"):
        load(folder, model__dtype=dtype)


def test_an_encoded_text_is_named_and_never_cached(small_sd, tmp_path, monkeypatch):
    denoiser = load(small_sd, model__dtype="bfloat16", model__text_cache=tmp_path / "texts")
    encoded = denoiser.encode_one

    def overflowing(text):
        return {name: row * float("inf") for name, row in encoded(text).items()}

    monkeypatch.setattr(denoiser, "encode_one", overflowing)
    with pytest.raises(ModelError, match=rf"text encoder gave .*{TEXT}.*model\.dtype=float32"):
        denoiser.encode([TEXT])
    assert not denoiser.texts.cache.path(TEXT).exists()
    denoiser.texts.cache.put(TEXT, {"embeds": torch.full((1, 2), float("nan"))})
    with pytest.raises(ModelError, match=rf"{denoiser.texts.cache.path(TEXT)}, a cached text.*delete"):
        denoiser.encode([TEXT])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_image_is_refused_with_the_dtype_that_helps(small_sd, tmp_path, dtype):
    """In bfloat16 this VAE multiplies two large numbers beyond what is finite, as half-precision VAEs do."""
    denoiser = load(small_sd, model__dtype=dtype)
    with torch.no_grad():
        denoiser.pipeline.vae.decoder.conv_out.weight.mul_(float("inf"))
    latents = torch.randn(2, *denoiser.latent_shape, generator=generator(0))
    remedy = "copy the files" if dtype == "float32" else r"set model\.dtype=float32"
    with pytest.raises(ModelError, match=rf"decoder.*not finite for 2 of 2 images; {remedy}"):
        denoiser.decode(latents)


def test_non_finite_latents_and_non_finite_images_are_told_apart(small_sd):
    denoiser = load(small_sd)
    decode = denoiser.pipeline.vae.decoder.forward
    latents = torch.randn(3, *denoiser.latent_shape, generator=generator(0))
    assert denoiser.decode(latents).shape == (3, 16, 16, 3)

    def broken(rows):
        made = decode(rows)
        made[1, 0, 0, 0] = float("nan")
        return made

    denoiser.pipeline.vae.decoder.forward = broken
    with pytest.raises(ModelError, match="1 of 3 images"):
        denoiser.decode(latents)
    latents[0, 0, 0, 0] = float("inf")
    with pytest.raises(ModelError, match=r"latents .* not finite"):
        denoiser.decode(latents)


@pytest.mark.parametrize(
    ("kind", "part", "ending"),
    [
        ("small_sd", "text_encoder", "q_proj.weight"),
        ("small_sdxl", "text_encoder_2", "text_projection.weight"),
        ("small_sd3", "text_encoder_3", "SelfAttention.q.weight"),
        ("small_flux", "transformer", "proj_out.weight"),
        ("small_sd", "unet", "conv_out.weight"),
        ("small_sd", "vae", "conv_out.weight"),
    ],
)
def test_weights_that_a_file_lacks_are_named_and_never_drawn_anew(request, tmp_path, kind, part, ending):
    model = request.getfixturevalue(kind)
    copy = shutil.copytree(model, tmp_path / model.name)
    path = next((copy / part).glob("*.safetensors"))
    weights = load_file(path)
    lacking = next(name for name in weights if name.endswith(ending))
    del weights[lacking]
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(ModelError, match=rf"{part} lack 1 parameters .*{ending}.*copy both again"):
        load(copy).encode([TEXT])


@pytest.mark.parametrize(
    ("kind", "part", "changes"),
    [
        ("small_flux_dev", "transformer", {"guidance_embeds": False}),
        ("small_sd3", "transformer", {"qk_norm": None}),
        ("small_sdxl", "unet", {"transformer_layers_per_block": [1, 1]}),
        ("small_sd", "vae", {"use_post_quant_conv": False}),
        ("small_sd", "text_encoder", {"num_hidden_layers": 0}),
    ],
)
def test_weights_that_the_config_has_no_place_for_are_never_dropped(request, tmp_path, kind, part, changes):
    model = request.getfixturevalue(kind)
    copy = shutil.copytree(model, tmp_path / model.name)
    path = copy / part / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ModelError, match=rf"{part} hold \d+ parameters that its config.json has no place for"):
        load(copy).encode([TEXT])


def test_an_encoder_may_have_the_rest_of_a_larger_model_in_its_files(small_sd, tmp_path):
    copy = shutil.copytree(small_sd, tmp_path / small_sd.name)
    path = next((copy / "text_encoder").glob("*.safetensors"))
    more = {"text_model.embeddings.position_ids": torch.arange(16)[None], "logit_scale": torch.tensor(1.0)}
    save_file({**load_file(path), **more}, path, {"format": "pt"})
    assert torch.equal(load(copy).encode([TEXT])["embeds"], load(small_sd).encode([TEXT])["embeds"])
