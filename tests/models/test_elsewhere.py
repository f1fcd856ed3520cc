"""What training writes draws the same pictures, to the bit, with plain diffusers; and so does the decoder."""

import numpy as np
import pytest
import torch

from pcpo_ray import models
from pcpo_ray.data.seeds import generator
from tests.support import same_images, small

CPU = torch.device("cpu")
TEXTS = ["a red circle above a blue square", "a small green ring"]
ALL = pytest.mark.parametrize("model", ["small_sd", "small_sdxl", "small_sd3", "small_flux"])


def load(path, **changes):
    run = small.run(path, **changes)
    return models.load(run.model, run.sampling, seed=0, device=CPU)


def plain(folder):
    from diffusers import DiffusionPipeline

    return DiffusionPipeline.from_pretrained(folder)


def drawn(pipeline, noise, output="np"):
    """What a pipeline makes of noise: pictures (N, H, W, 3) in 0..1, or latents."""
    pipeline.set_progress_bar_config(disable=True)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(
                False
            )  # torch's kernels, and so the last bits, depend on it even where no graph is kept
    length = (
        {"max_sequence_length": 16} if "text_encoder_3" in pipeline.components or "Flux" in str(type(pipeline)) else {}
    )
    return pipeline(
        TEXTS, latents=noise, num_inference_steps=3, height=16, width=16, output_type=output, **length
    ).images


def changed(path, train):
    """A denoiser whose trained weights are no longer those it began with, they, noise, and what it then draws."""
    denoiser = load(path, model__train=f"{{{train}}}")
    noise = torch.stack([denoiser.initial_noise(generator(seed)) for seed in range(len(TEXTS))])
    trained = denoiser.trainable()
    with torch.no_grad():
        for index, parameter in enumerate(trained.values()):
            parameter.add_(torch.randn(parameter.shape, generator=generator(index)), alpha=0.1)
    with denoiser.text_encoders():
        images = drawn(denoiser.pipeline, noise)
    assert np.abs(images - drawn(plain(path), noise)).max() > 0
    return denoiser, trained, noise, images


@ALL
def test_an_adapter(model, request, tmp_path):
    path = request.getfixturevalue(model)
    denoiser, trained, noise, images = changed(path, "kind: lora, rank: 4, alpha: 8")
    denoiser.save(tmp_path, trained)
    pipeline = plain(path)
    pipeline.load_lora_weights(tmp_path)
    assert (drawn(pipeline, noise) == images).all()


@ALL
def test_a_whole_model(model, request, tmp_path):
    denoiser, trained, noise, images = changed(request.getfixturevalue(model), "kind: full")
    denoiser.save(tmp_path, trained)
    assert (drawn(plain(tmp_path), noise) == images).all()


def test_a_model_trained_in_float32_masters_is_saved_in_its_own_dtype(small_sd, tmp_path):
    from safetensors.torch import load_file

    denoiser = load(small_sd, model__train="{kind: full}", model__dtype="bfloat16")
    masters = {name: value.detach().float() + 1e-3 for name, value in denoiser.trainable().items()}
    denoiser.save(tmp_path, masters)
    written = load_file(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(written[name], value.bfloat16()) for name, value in masters.items())
    assert {value.dtype for value in written.values()} == {torch.bfloat16}


@ALL
def test_images_of_the_same_latents(model, request):
    path = request.getfixturevalue(model)
    denoiser, pipeline = load(path), plain(path)
    noise = torch.stack([denoiser.initial_noise(generator(seed)) for seed in range(len(TEXTS))])
    images = np.round(drawn(pipeline, noise) * 255).astype(np.uint8)
    assert same_images.same(denoiser.decode(drawn(pipeline, noise, "latent")), images)
