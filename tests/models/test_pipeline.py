"""What all denoisers over diffusers' pipelines share, seen on the smallest of them."""

import json
import shutil

import numpy as np
import pytest
import torch

from pcpo_ray import models
from pcpo_ray.data.seeds import generator
from pcpo_ray.errors import ModelError
from pcpo_ray.models.texts import TextCache
from tests.support import small

CPU = torch.device("cpu")
TEXT = "a red circle above a blue square"


def load(path, **changes):
    run = small.run(path, **changes)
    return models.load(run.model, run.sampling, seed=0, device=CPU)


def test_text_encoders_are_not_loaded_before_a_text_is_asked_for(small_sd):
    denoiser = load(small_sd)
    assert denoiser.pipeline.text_encoder is None
    denoiser.encode([TEXT])
    assert denoiser.pipeline.text_encoder is not None


@pytest.mark.parametrize("model", ["small_sdxl", "small_sd3", "small_flux"])
def test_text_encoders_are_on_the_device_only_while_new_texts_are_encoded(model, request, monkeypatch):
    denoiser = load(request.getfixturevalue(model))
    denoiser.encode([TEXT])
    denoiser.device = torch.device("cpu", 0)  # not where they wait, to who looks at the name
    moves: dict[str, list[str]] = {}
    for name in denoiser.encoders:
        encoder = getattr(denoiser.pipeline, name)

        def move(where, name=name, to=encoder.to):
            moves.setdefault(name, []).append(str(where))
            return to(where)

        monkeypatch.setattr(encoder, "to", move)
    denoiser.encode([TEXT])
    assert moves == {}
    denoiser.encode([TEXT, "a blue ring", "a star"])
    assert moves == {name: ["cpu:0", "cpu"] for name in denoiser.encoders} and len(moves) > 1


def test_a_pipeline_is_saved_whole_without_its_text_encoders_on_the_device(small_sd, tmp_path, monkeypatch):
    denoiser = load(small_sd, model__train="{kind: full}")
    denoiser.encode([TEXT])
    denoiser.device = torch.device("cpu", 0)
    moves, encoder = [], denoiser.pipeline.text_encoder
    monkeypatch.setattr(encoder, "to", lambda where: moves.append(str(where)))
    denoiser.save(tmp_path, denoiser.trainable())
    assert set(moves) <= {"cpu"} and (tmp_path / "text_encoder" / "model.safetensors").is_file()


@pytest.mark.parametrize("model", ["small_sd", "small_sdxl", "small_sd3", "small_flux"])
def test_attention_is_torchs_own_kernel(model, request, monkeypatch):
    called, attention = [], torch.nn.functional.scaled_dot_product_attention
    denoiser = load(request.getfixturevalue(model))
    conditioning = denoiser.encode([TEXT])

    def counted(*arguments, **options):
        called.append(1)
        return attention(*arguments, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    with torch.no_grad():
        denoiser.predict(denoiser.initial_noise(generator(0))[None], torch.tensor([501.0]), conditioning)
    assert called


def test_a_cached_text_is_the_same_bits_and_needs_no_encoder(small_sdxl, tmp_path):
    first = load(small_sdxl, model__text_cache=tmp_path / "texts")
    encoded = first.encode([TEXT, "a blue ring"])
    second = load(small_sdxl, model__text_cache=tmp_path / "texts")
    again = second.encode([TEXT, "a blue ring"])
    assert second.pipeline.text_encoder is None
    assert set(encoded) == set(again)
    assert all(torch.equal(encoded[name], again[name]) for name in encoded)


def test_a_cache_is_kept_in_the_dtype_it_was_computed_in(small_sd, tmp_path):
    encoded = load(small_sd, model__text_cache=tmp_path, model__dtype="bfloat16").encode([TEXT])
    again = load(small_sd, model__text_cache=tmp_path, model__dtype="bfloat16").encode([TEXT])
    assert again["embeds"].dtype == torch.bfloat16
    assert torch.equal(encoded["embeds"], again["embeds"])
    assert load(small_sd, model__text_cache=tmp_path).encode([TEXT])["embeds"].dtype == torch.float32


def test_another_encoder_has_another_cache(small_sd, tmp_path):
    copy = shutil.copytree(small_sd, tmp_path / "copy")
    model = small.run(small_sd, model__text_cache=tmp_path).model
    same = TextCache(model, small_sd).folder
    assert TextCache(model, copy).folder == same
    path = copy / "text_encoder" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert TextCache(model, copy).folder != same
    half = small.run(small_sd, model__text_cache=tmp_path, model__dtype="float16").model
    assert TextCache(half, small_sd).folder != same


def test_a_damaged_cached_text_is_a_named_error(small_sd, tmp_path):
    cache = TextCache(small.run(small_sd, model__text_cache=tmp_path).model, small_sd)
    cache.put(TEXT, {"embeds": torch.zeros(1, 2)})
    path = cache.path(TEXT)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ModelError, match=rf"{path.name}.*delete it"):
        cache.get(TEXT)


@pytest.mark.parametrize("train", ["{kind: full}", "{kind: lora, rank: 2}"])
@pytest.mark.parametrize("model", ["small_sd", "small_sdxl", "small_sd3", "small_flux"])
def test_gradient_checkpointing_keeps_less_and_changes_no_gradient(model, request, train):
    """In eval mode, as the learner has its network."""
    gradients, kept = [], []
    for checkpointing in (False, True):
        denoiser = load(request.getfixturevalue(model), model__gradient_checkpointing=checkpointing, model__train=train)
        with torch.no_grad():
            for index, parameter in enumerate(denoiser.trainable().values()):
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator(index)))
        latents = denoiser.initial_noise(generator(0))[None]
        saved: dict[int, int] = {}

        def pack(tensor, saved=saved):
            saved[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            predicted = denoiser.predict(latents, torch.full((len(latents),), 501.0), denoiser.encode([TEXT]))
        kept.append(sum(saved.values()))
        predicted.square().sum().backward()
        gradients.append([parameter.grad for parameter in denoiser.trainable().values()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    assert kept[1] < kept[0]


def test_slicing_decodes_an_image_at_a_time_to_the_same_images(small_sd):
    denoiser, plain = load(small_sd, model__vae_slicing=True), load(small_sd)
    latents = torch.randn(3, *denoiser.latent_shape, generator=generator(0))
    seen, decode = [], denoiser.pipeline.vae.decoder.forward

    def decoded(rows):
        seen.append(len(rows))
        return decode(rows)

    denoiser.pipeline.vae.decoder.forward = decoded
    assert (denoiser.decode(latents) == plain.decode(latents)).all()
    assert seen == [1, 1, 1]


def test_tiling_decodes_a_large_image_a_tile_at_a_time(small_sd):
    changes = {"sampling__height": 32, "sampling__width": 48}
    denoiser, plain = load(small_sd, model__vae_tiling=True, **changes), load(small_sd, **changes)
    latents = torch.randn(2, *denoiser.latent_shape, generator=generator(0))
    seen, decode = [], denoiser.pipeline.vae.decoder.forward

    def decoded(rows):
        seen.append(tuple(rows.shape[2:]))
        return decode(rows)

    denoiser.pipeline.vae.decoder.forward = decoded
    tiled, whole = denoiser.decode(latents), plain.decode(latents)
    assert len(seen) > 4 and max(seen) <= (8, 8)
    assert tiled.shape == whole.shape == (2, 32, 48, 3)
    corner = np.s_[:, :4, :4]  # where no other tile is near
    assert np.abs(tiled[corner].astype(int) - whole[corner]).mean() < 0.1 * whole.std()


def test_a_gaussian_adapter_starts_elsewhere_and_changes_nothing(small_sd):
    kaiming, gaussian = (
        load(small_sd, model__train=f"{{kind: lora, init: {init}}}") for init in ("kaiming", "gaussian")
    )
    pairs = [(p, gaussian.trainable()[name]) for name, p in kaiming.trainable().items() if "lora_A" in name]
    assert pairs and not any(torch.equal(one, other) for one, other in pairs)
    assert all(not p.any() for name, p in gaussian.trainable().items() if "lora_B" in name)


@pytest.mark.parametrize("part", ["text_encoder", "tokenizer", "unet", "vae"])
def test_a_folder_with_a_part_missing_is_refused_before_anything_is_loaded(small_sd, tmp_path, part):
    copy = shutil.copytree(small_sd, tmp_path / "small-copy")
    shutil.rmtree(copy / part)
    with pytest.raises(ModelError, match=rf"no {part}"):
        models.folder_of(small.run(copy).model)


def test_weights_missing_from_a_part_are_refused_before_anything_is_loaded(small_sd, tmp_path):
    copy = shutil.copytree(small_sd, tmp_path / "small-copy")
    (copy / "text_encoder" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"text_encoder has no weights"):
        models.folder_of(small.run(copy).model)


def test_an_index_that_is_not_an_object_is_a_named_error(small_sd, tmp_path):
    copy = shutil.copytree(small_sd, tmp_path / "small-copy")
    (copy / "model_index.json").write_text(json.dumps([]))
    with pytest.raises(ModelError, match="expected an object"):
        models.folder_of(small.run(copy).model)


def test_the_unconditional_branch_can_be_kept_out_of_the_gradient(small_sd):
    gradients, values = [], []
    for detached in (False, True):
        denoiser = load(small_sd, sampling__detach_unconditional=detached, sampling__guidance_scale=3.0)
        for parameter in denoiser.trainable().values():
            parameter.data.add_(0.1)
        latents, conditioning = torch.linspace(-1, 1, 256).reshape(1, 4, 8, 8), denoiser.encode([TEXT])
        prediction = denoiser.predict(latents, torch.full((len(latents),), 501.0), conditioning)
        prediction.sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in denoiser.trainable().values()]))
        values.append(prediction.detach())
    assert torch.equal(*values)
    denoiser.module.zero_grad()
    conditional = denoiser.forward(latents, torch.full((len(latents),), 501.0), {"embeds": conditioning["embeds"]})
    (3.0 * conditional).sum().backward()
    expected = torch.cat([p.grad.flatten() for p in denoiser.trainable().values()])
    assert torch.allclose(gradients[1], expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(gradients[0], expected, rtol=1e-2)
