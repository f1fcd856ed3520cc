"""The SDXL architecture behind the Denoiser protocol, against diffusers' own pipeline."""

import json
import shutil

import pytest
import torch

from pcpo_ray import models
from pcpo_ray.algorithm.transitions import ddim
from pcpo_ray.data.seeds import generator
from tests.support import small

CPU = torch.device("cpu")
TEXTS = ["a red circle above a blue square", "a small green ring", "a star and a cross"]


def load(path, **changes):
    run = small.run(path, **changes)
    return models.load(run.model, run.sampling, seed=0, device=CPU)


def images_of_the_pipeline(folder, texts, noise, *, height, width, **options):
    from diffusers import DDIMScheduler, StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline.from_pretrained(folder)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        texts, latents=noise, num_inference_steps=5, height=height, width=width, output_type="latent", **options
    ).images


@pytest.mark.parametrize("zeros", [True, False])
@pytest.mark.parametrize(("scale", "texts", "size"), [(1.0, TEXTS[:1], (16, 16)), (3.0, TEXTS, (24, 16))])
def test_without_noise_its_latents_are_those_of_the_pipeline(small_sdxl, tmp_path, zeros, scale, texts, size):
    folder = shutil.copytree(small_sdxl, tmp_path / "small-sdxl")
    index = folder / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "force_zeros_for_empty_prompt": zeros}))
    height, width = size
    denoiser = load(folder, sampling__guidance_scale=scale, sampling__height=height, sampling__width=width)
    noise = torch.stack([denoiser.initial_noise(generator(seed)) for seed in range(len(texts))])
    latents, schedule = noise, denoiser.schedule(5)
    with torch.no_grad():
        for timestep, step in zip(schedule.timesteps, ddim.steps(schedule, eta=0.0), strict=True):
            prediction = denoiser.predict(latents, torch.full((len(latents),), float(timestep)), denoiser.encode(texts))
            latents, _ = step.draw(latents, prediction, torch.zeros_like(latents))
    theirs = images_of_the_pipeline(folder, texts, noise, height=height, width=width, guidance_scale=scale)
    assert (latents - theirs).abs().max() < 1e-5
