"""The embedded flow architecture behind the Denoiser protocol, against diffusers' own pipeline."""

import pytest
import torch

from pcpo_ray import models
from pcpo_ray.algorithm.transitions import flow_sde
from pcpo_ray.data.seeds import generator
from tests.support import small

CPU = torch.device("cpu")
TEXT = "a red circle above a blue square"
TEXTS = [TEXT, "a small green ring", "a star and a cross"]


def load(path, **changes):
    run = small.run(path, **changes)
    return models.load(run.model, run.sampling, seed=0, device=CPU)


def deterministic(denoiser, noise, steps, texts=(TEXT,)):
    latents, schedule = noise, denoiser.schedule(steps)
    with torch.no_grad():
        for timestep, step in zip(schedule.timesteps, flow_sde.steps(schedule, (0.0,) * steps), strict=True):
            prediction = denoiser.predict(latents, torch.full((len(latents),), timestep), denoiser.encode(texts))
            latents, _ = step.draw(latents, prediction, torch.zeros_like(latents))
    return latents


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(("scale", "texts", "size"), [(1.0, TEXTS[:1], (16, 16)), (3.0, TEXTS, (24, 16))])
def test_without_noise_its_latents_are_those_of_the_pipeline(small_flux, tmp_path, dynamic, scale, texts, size):
    from diffusers import FluxPipeline

    folder = small.rescheduled(small_flux, tmp_path, use_dynamic_shifting=dynamic, max_shift=1.15, base_shift=0.5)
    height, width = size
    denoiser = load(folder, sampling__guidance_scale=scale, sampling__height=height, sampling__width=width)
    noise = torch.stack([denoiser.initial_noise(generator(seed)) for seed in range(len(texts))])
    ours = deterministic(denoiser, noise, 5, texts)
    pipeline = FluxPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        texts,
        negative_prompt=[""] * len(texts),
        latents=noise,
        true_cfg_scale=scale,
        num_inference_steps=5,
        height=height,
        width=width,
        max_sequence_length=16,
        output_type="latent",
    ).images
    assert (ours - theirs).abs().max() < 1e-5


@pytest.mark.parametrize("guidance", [1.0, 3.5])
@pytest.mark.parametrize(("texts", "size"), [(TEXTS[:1], (16, 16)), (TEXTS, (24, 16))])
def test_a_distilled_guidance_scale_is_an_input_of_the_network(small_flux_dev, guidance, texts, size):
    from diffusers import FluxPipeline

    folder, (height, width) = small_flux_dev, size
    denoiser = load(folder, sampling__guidance_scale=guidance, sampling__height=height, sampling__width=width)
    assert set(denoiser.encode([TEXT])) == {"embeds", "pooled"}
    noise = torch.stack([denoiser.initial_noise(generator(seed)) for seed in range(len(texts))])
    pipeline = FluxPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        texts,
        latents=noise,
        guidance_scale=guidance,
        num_inference_steps=5,
        height=height,
        width=width,
        max_sequence_length=16,
        output_type="latent",
    ).images
    assert (deterministic(denoiser, noise, 5, texts) - theirs).abs().max() < 1e-5


def test_the_guidance_scale_of_a_distilled_model_changes_its_prediction(small_flux_dev):
    low, high = (load(small_flux_dev, sampling__guidance_scale=scale) for scale in (1.0, 3.5))
    noise = low.initial_noise(generator(3))[None]
    with torch.no_grad():
        one, other = (
            denoiser.predict(noise, torch.tensor([500.0]), denoiser.encode([TEXT])) for denoiser in (low, high)
        )
    assert (one - other).abs().max() > 1e-4


def test_its_noise_is_the_pipelines_at_the_same_seed(small_flux):
    from diffusers import FluxPipeline

    pipeline = FluxPipeline.from_pretrained(small_flux)
    theirs, _ = pipeline.prepare_latents(1, 4, 16, 16, torch.float32, CPU, generator(3))
    assert torch.equal(load(small_flux).initial_noise(generator(3)), theirs[0])
