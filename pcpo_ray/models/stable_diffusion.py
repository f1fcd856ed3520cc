"""Stable Diffusion 1.x and 2.x: a UNet that predicts the noise or the velocity."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from pcpo_ray.algorithm.schedule import DiffusionSchedule
from pcpo_ray.config import BACKBONES, Sampling
from pcpo_ray.data.tensors import Conditioning
from pcpo_ray.errors import ModelError, ScheduleError
from pcpo_ray.models import schedulers
from pcpo_ray.models.described import Described
from pcpo_ray.models.pipeline import TOKENS, PipelineDenoiser


class StableDiffusion(PipelineDenoiser):
    """Stable Diffusion 1.x and 2.x; latents are (C, h, w)."""

    pipeline_class = BACKBONES["stable_diffusion"].pipeline
    part = "unet"
    several_sizes = True
    packed = 1
    settings: ClassVar = {
        "class_embed_type": (None,),
        "num_class_embeds": (None,),
        "addition_embed_type": (None,),
        "encoder_hid_dim_type": (None, "text_proj"),
        "dual_cross_attention": (False,),
    }

    @classmethod
    def check(cls, description: Described) -> None:
        super().check(description)
        if description.network.get("time_cond_proj_dim") is not None:
            raise ModelError(
                f"{description.folder / cls.part} has time_cond_proj_dim: a UNet distilled to be told the guidance "
                "scale, which it is not told here; expected null: take the model that it was distilled from"
            )

    @classmethod
    def schedule_of(cls, scheduler_config: Mapping[str, Any], sampling: Sampling, *, tokens: int) -> DiffusionSchedule:
        return schedule(scheduler_config, sampling.steps)

    @cached_property
    def alpha_bars(self) -> Float[Tensor, " T"]:
        """The training schedule's alpha_bars by timestep, in float64."""
        alpha_bars: Tensor = ddim(self.description.scheduler).alphas_cumprod
        return alpha_bars.double().to(self.device)

    def text_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"embeds": (TOKENS, self.config.cross_attention_dim)}

    def encode_one(self, text: str) -> Conditioning:
        return {"embeds": self.pipeline.encode_prompt(text, self.device, 1, False)[0]}

    def forward(
        self, latents: Float[Tensor, "B C h w"], timesteps: Float[Tensor, " B"], conditioning: Conditioning
    ) -> Float[Tensor, "B C h w"]:
        prediction: Tensor = self.module(
            latents,
            timesteps,
            encoder_hidden_states=conditioning["embeds"],
            return_dict=False,
        )[0]
        return prediction

    def parametrised(
        self, prediction: Float[Tensor, "B C h w"], latents: Float[Tensor, "B C h w"], timesteps: Float[Tensor, " B"]
    ) -> Float[Tensor, "B C h w"]:
        """Convert to the noise: for a velocity v (arXiv 2202.00512), sqrt(alpha_bar) v + sqrt(1 - alpha_bar) x."""
        if self.description.scheduler.get("prediction_type", "epsilon") == "epsilon":
            return prediction
        alpha_bar = self.alpha_bars[timesteps.long()].reshape(-1, *[1] * (latents.ndim - 1))
        signal, noise = (share.sqrt().float() for share in (alpha_bar, 1 - alpha_bar))
        return signal * prediction + noise * latents.float()


LEADING = (
    f'write "timestep_spacing": "leading" and "steps_offset": 1 in the model\'s {schedulers.FILE}, so that the steps '
    "begin a little before"
)


def ddim(scheduler_config: Mapping[str, Any]) -> Any:
    """Make diffusers' DDIMScheduler from the config of any diffusion scheduler. Raises ModelError."""
    from diffusers import DDIMScheduler

    return schedulers.made(DDIMScheduler, schedulers.understood(scheduler_config, schedulers.DIFFUSION))


def schedule(scheduler_config: Mapping[str, Any], steps: int) -> DiffusionSchedule:
    """Build the schedule of diffusers' DDIM with this scheduler config. Raises ScheduleError and ModelError."""
    scheduler = ddim(scheduler_config)
    if scheduler.config.prediction_type not in ("epsilon", "v_prediction"):
        raise ModelError(
            f"the model's {schedulers.FILE} has prediction_type: {scheduler.config.prediction_type!r}; "
            "expected 'epsilon' or 'v_prediction'"
        )
    train_steps = scheduler.config.num_train_timesteps
    if steps > train_steps:
        raise ScheduleError(f"sampling.steps is {steps}; the model was trained on {train_steps}: use at most those")
    schedulers.set_timesteps(scheduler, num_inference_steps=steps)
    alpha_bar = scheduler.alphas_cumprod.double().reshape(-1)  # trained_betas may be one number
    timesteps = [int(t) for t in scheduler.timesteps]
    if timesteps[0] >= train_steps:  # the offset puts them past the end
        raise ScheduleError(
            f"sampling.steps is {steps}, which begin at timestep {timesteps[0]} (the scheduler's steps_offset is "
            f"{scheduler.config.steps_offset}); the model knows 0 to {train_steps - 1}: use fewer steps"
        )
    if len(alpha_bar) < train_steps:
        raise ModelError(
            f"the model's {schedulers.FILE} has {len(alpha_bar)} trained_betas for num_train_timesteps: {train_steps}; "
            "expected as many"
        )
    if alpha_bar[timesteps[0]] == 0:
        at_the_end = "use fewer steps" if scheduler.config.timestep_spacing == "leading" else LEADING
        raise ScheduleError(
            f"sampling.steps is {steps}, which begin at timestep {timesteps[0]}, where the model's noise schedule "
            f"leaves no signal at all (alpha_bar is 0, as rescale_betas_zero_snr makes it) and a step of DDIM with "
            f"noise has no ratio of probabilities; {at_the_end}"
        )
    # DDIMScheduler itself takes t minus the stride as the previous timestep, whatever the spacing
    before = [t - train_steps // steps for t in timesteps]
    return DiffusionSchedule(
        timesteps=tuple(timesteps),
        alpha_bar=tuple(float(alpha_bar[t]) for t in timesteps),
        alpha_bar_prev=tuple(float(alpha_bar[t] if t >= 0 else scheduler.final_alpha_cumprod) for t in before),
    )
