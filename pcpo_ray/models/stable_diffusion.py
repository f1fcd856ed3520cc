"""Stable Diffusion 1.x: a UNet that predicts the noise, guided by a doubled batch."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pcpo_ray.errors import ModelError, ScheduleError
from pcpo_ray.models.pipeline import PipelineDenoiser
from pcpo_ray.schedule import DiffusionSchedule
from pcpo_ray.trajectory import Conditioning


class StableDiffusion(PipelineDenoiser):
    """Latents are (C, h, w)."""

    pipeline_class = "StableDiffusionPipeline"
    part = "unet"

    def default_size(self) -> int:
        return int(self.pipeline.unet.config.sample_size * self.pipeline.vae_scale_factor)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        factor = self.pipeline.vae_scale_factor
        return (self.pipeline.unet.config.in_channels, self.height // factor, self.width // factor)

    def schedule(self, steps: int) -> DiffusionSchedule:
        return schedule(self.pipeline.scheduler.config, steps)

    def initial_noise(self, generator: torch.Generator) -> Float[Tensor, "C h w"]:
        return torch.randn((1, *self.latent_shape), generator=generator)[0]

    def encode_one(self, text: str) -> Conditioning:
        return {"embeds": self.pipeline.encode_prompt(text, self.device, 1, False)[0]}

    def predict(
        self, latents: Float[Tensor, "B C h w"], timestep: float, conditioning: Conditioning
    ) -> Float[Tensor, "B C h w"]:
        latents = latents.to(conditioning["embeds"].dtype)
        times = torch.tensor(int(timestep), device=self.device)
        if not self.guided:
            prediction: Tensor = self.module(
                latents, times, encoder_hidden_states=conditioning["embeds"], return_dict=False
            )[0]
            return prediction.float()
        embeds = torch.cat([conditioning["negative_embeds"], conditioning["embeds"]])
        both = self.module(torch.cat([latents, latents]), times, encoder_hidden_states=embeds, return_dict=False)[0]
        unconditional, conditional = both.float().chunk(2)
        guided: Tensor = unconditional + self.sampling.guidance_scale * (conditional - unconditional)
        return guided


def schedule(scheduler_config: Mapping[str, Any], steps: int) -> DiffusionSchedule:
    """The steps that diffusers' DDIM takes with this scheduler config. Raises ScheduleError and ModelError."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler.from_config(scheduler_config)
    if scheduler.config.prediction_type != "epsilon":
        raise ModelError(f"the scheduler's prediction_type is {scheduler.config.prediction_type!r}; expected 'epsilon'")
    train_steps = scheduler.config.num_train_timesteps
    if steps > train_steps:
        raise ScheduleError(f"sampling.steps is {steps}; the model was trained on {train_steps}: use at most those")
    scheduler.set_timesteps(steps)
    alpha_bar = scheduler.alphas_cumprod.double()
    timesteps = [int(t) for t in scheduler.timesteps]
    # DDIMScheduler itself takes the step before as t minus the stride, whatever the spacing
    before = [t - train_steps // steps for t in timesteps]
    return DiffusionSchedule(
        timesteps=tuple(timesteps),
        alpha_bar=tuple(float(alpha_bar[t]) for t in timesteps),
        alpha_bar_prev=tuple(float(alpha_bar[t] if t >= 0 else scheduler.final_alpha_cumprod) for t in before),
    )
