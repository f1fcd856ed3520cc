"""The embedded flow architecture behind the Denoiser protocol, against diffusers' own pipeline."""

import pytest
import torch

from pcpo_ray import models
from pcpo_ray.trajectory import generator
from pcpo_ray.transitions import flow
from tests import small

CPU = torch.device("cpu")
TEXT = "a red circle above a blue square"
TEXTS = [TEXT, "a small green ring", "a star and a cross"]


def load(path, **changes):
    run = small.run(path, **changes)
    return models.load(run.model, run.sampling, seed=0, device=CPU)


def deterministic(denoiser, noise, steps, texts=(TEXT,)):
    latents, schedule = noise, denoiser.schedule(steps)
    with torch.no_grad():
        for timestep, step in zip(schedule.timesteps, flow.steps(schedule, (0.0,) * steps), strict=True):
            prediction = denoiser.predict(latents, timestep, denoiser.encode(texts))
            latents, _ = step.draw(latents, prediction, torch.zeros_like(latents))
    return latents


@pytest.mark.parametrize(("scale", "texts", "size"), [(1.0, TEXTS[:1], (16, 16)), (3.0, TEXTS, (24, 16))])
def test_without_noise_its_latents_are_those_of_the_pipeline(small_flux, scale, texts, size):
    from diffusers import FluxPipeline

    height, width = size
    denoiser = load(small_flux, sampling__guidance_scale=scale, sampling__height=height, sampling__width=width)
    noise = torch.stack([denoiser.initial_noise(generator(seed)) for seed in range(len(texts))])
    ours = deterministic(denoiser, noise, 5, texts)
    pipeline = FluxPipeline.from_pretrained(small_flux)
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


def test_a_distilled_guidance_scale_is_an_input_of_the_network(tmp_path):
    from diffusers import FluxPipeline

    folder = small.flux(tmp_path / "small-flux", guidance_embeds=True)
    denoiser = load(folder, sampling__guidance_scale=3.5)
    assert set(denoiser.encode([TEXT])) == {"embeds", "pooled"}
    noise = denoiser.initial_noise(generator(3))[None]
    pipeline = FluxPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        TEXT,
        latents=noise,
        guidance_scale=3.5,
        num_inference_steps=5,
        height=16,
        width=16,
        max_sequence_length=16,
        output_type="latent",
    ).images
    assert (deterministic(denoiser, noise, 5) - theirs).abs().max() < 1e-5


def test_its_noise_is_the_pipelines_at_the_same_seed(small_flux):
    from diffusers import FluxPipeline

    pipeline = FluxPipeline.from_pretrained(small_flux)
    theirs, _ = pipeline.prepare_latents(1, 4, 16, 16, torch.float32, CPU, generator(3))
    assert torch.equal(load(small_flux).initial_noise(generator(3)), theirs[0])
