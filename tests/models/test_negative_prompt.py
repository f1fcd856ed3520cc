"""A negative prompt takes the empty text's place in guidance, as in each pipeline of diffusers'."""

import pytest
import torch

from pcpo_ray import models
from pcpo_ray.algorithm.transitions import ddim, flow_sde
from pcpo_ray.commands import session
from pcpo_ray.data.seeds import generator
from pcpo_ray.errors import ConfigError, ModelError
from tests.support import small

TEXTS, NEGATIVE = ["a red star", "a small ring"], "a blue square"
PIPELINES = {
    "small_sd": "StableDiffusionPipeline",
    "small_sdxl": "StableDiffusionXLPipeline",
    "small_sd3": "StableDiffusion3Pipeline",
    "small_flux": "FluxPipeline",
}


def theirs(name, folder, noise):
    import diffusers

    pipeline = getattr(diffusers, PIPELINES[name]).from_pretrained(folder)
    if name in ("small_sd", "small_sdxl"):
        pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    pipeline.set_progress_bar_config(disable=True)
    options = {"true_cfg_scale" if name == "small_flux" else "guidance_scale": 3.0}
    if name in ("small_sd3", "small_flux"):
        options["max_sequence_length"] = 16
    return pipeline(
        TEXTS,
        negative_prompt=[NEGATIVE] * len(TEXTS),
        latents=noise,
        num_inference_steps=3,
        height=16,
        width=16,
        output_type="latent",
        **options,
    ).images


@pytest.mark.parametrize("name", PIPELINES)
def test_without_noise_its_latents_are_those_of_the_pipeline(request, name):
    folder = request.getfixturevalue(name)
    run = small.run(folder, sampling__guidance_scale=3.0, sampling__negative_prompt=NEGATIVE)
    denoiser = models.load(run.model, run.sampling, seed=0, device=torch.device("cpu"))
    noise = torch.stack([denoiser.initial_noise(generator(seed)) for seed in range(len(TEXTS))])
    latents, schedule = noise, denoiser.schedule(3)
    flow = name in ("small_sd3", "small_flux")
    affine = flow_sde.steps(schedule, (0.0,) * 3) if flow else ddim.steps(schedule, eta=0.0)
    with torch.no_grad():
        for timestep, step in zip(schedule.timesteps, affine, strict=True):
            times = torch.full((len(latents),), float(timestep))
            prediction = denoiser.predict(latents, times, denoiser.encode(TEXTS))
            latents, _ = step.draw(latents, prediction, torch.zeros_like(latents))
    assert (latents - theirs(name, folder, noise)).abs().max() < 2e-5


def test_it_is_refused_where_there_is_no_unconditional_branch(small_sd, small_flux_dev):
    with pytest.raises(ConfigError, match=r"negative_prompt is 'blurry' with guidance_scale 1, .*above 1"):
        small.run(small_sd, sampling__guidance_scale=1, sampling__negative_prompt="blurry")
    for key, value in (("negative_prompt", "blurry"), ("detach_unconditional", True)):
        run = small.run(small_flux_dev, sampling__guidance_scale=3.5, **{f"sampling__{key}": value})
        with pytest.raises(ModelError, match=rf"sampling\.{key} .* guidance scale as an input, without another branch"):
            session.check_steps(run)


def test_evaluations_without_guidance_do_without_it(small_sd):
    guided = {"sampling__guidance_scale": 3.0, "sampling__negative_prompt": NEGATIVE}
    run = small.run(small_sd, **guided, evaluation__sampling="{guidance_scale: 1.0}")
    assert run.evaluated.negative_prompt == ""
    assert small.run(small_sd, **guided, evaluation__sampling="{steps: 5}").evaluated.negative_prompt == NEGATIVE
