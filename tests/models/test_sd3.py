"""The SD3 architecture behind the Denoiser protocol, against diffusers' own pipeline."""

import pytest
import torch

from pcpo_ray import models
from pcpo_ray.algorithm.transitions import flow_sde
from pcpo_ray.data.seeds import generator
from tests.support import small

CPU = torch.device("cpu")
TEXTS = ["a red circle above a blue square", "a small green ring", "a star and a cross"]


def load(path, **changes):
    run = small.run(path, **changes)
    return models.load(run.model, run.sampling, seed=0, device=CPU)


@pytest.mark.parametrize(("scale", "texts", "size"), [(1.0, TEXTS[:1], (16, 16)), (3.0, TEXTS, (24, 16))])
@pytest.mark.parametrize(("with_t5", "dynamic"), [(True, False), (True, True), (False, False)])
def test_without_noise_its_latents_are_those_of_the_pipeline(small_sd3, tmp_path, with_t5, dynamic, scale, texts, size):
    from diffusers import StableDiffusion3Pipeline

    folder = small_sd3 if with_t5 else small.sd3(tmp_path / "small-sd3", with_t5=False)
    folder = small.rescheduled(folder, tmp_path / "scheduled", use_dynamic_shifting=dynamic)
    height, width = size
    denoiser = load(folder, sampling__guidance_scale=scale, sampling__height=height, sampling__width=width)
    noise = torch.stack([denoiser.initial_noise(generator(seed)) for seed in range(len(texts))])
    latents, schedule = noise, denoiser.schedule(5)
    with torch.no_grad():
        for timestep, step in zip(schedule.timesteps, flow_sde.steps(schedule, (0.0,) * 5), strict=True):
            prediction = denoiser.predict(latents, torch.full((len(latents),), timestep), denoiser.encode(texts))
            latents, _ = step.draw(latents, prediction, torch.zeros_like(latents))
    without = {} if with_t5 else {"text_encoder_3": None, "tokenizer_3": None}
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, **without)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        texts,
        latents=noise,
        guidance_scale=scale,
        num_inference_steps=5,
        height=height,
        width=width,
        max_sequence_length=16 if with_t5 else 256,
        output_type="latent",
    ).images
    assert (latents - theirs).abs().max() < 1e-5
