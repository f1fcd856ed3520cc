"""Step factors: the numbers of each timestep that a pair's loss is made with, as tensors to look up by step."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pcpo_ray import config
from pcpo_ray.algorithm.credit import Credit


@dataclass(frozen=True, kw_only=True)
class StepFactors:
    """Numbers of each of the T timesteps, on the policy's device.

    `factors` multiply the surrogate, `scales` the log-ratio. `own_weights` are those of the sampler's own Gaussians.
    """

    credit_weights: Float[Tensor, " T"]
    signs: Float[Tensor, " T"]
    clip_ranges: Float[Tensor, " T"]
    factors: Float[Tensor, " T"]
    own_weights: Float[Tensor, " T"]
    scales: Float[Tensor, " T"]

    @classmethod
    def of(cls, plan: Credit, settings: config.Objective, device: torch.device) -> "StepFactors":
        """Compute the numbers of a credit's steps under the config's objective."""
        noises = [step.std for step in plan.steps]
        own = [mix * step.weight for mix, step in zip(plan.mix, plan.steps, strict=True)]
        published = settings.log_ratio == "flow_cps"
        clip_ranges = scaled(plan, settings.clip_range, plan.weights if settings.clip_scale == "weight" else None)
        factors = scaled(plan, 1.0, noises if settings.step_loss == "noise" else None)
        return cls(
            credit_weights=torch.tensor(plan.weights, device=device),
            signs=torch.tensor([step.sign for step in plan.steps], device=device),
            clip_ranges=torch.tensor(clip_ranges, device=device),
            factors=torch.tensor(factors, device=device),
            own_weights=torch.tensor(own, dtype=torch.float64, device=device),
            scales=torch.tensor([2 * std**2 if published else 1.0 for std in noises], device=device),
        )


def scaled(plan: Credit, value: float, by: Sequence[float] | None) -> tuple[float, ...]:
    """Scale `value` at each timestep by its `by` over the trained timesteps' mean of `by` (None: not at all)."""
    if by is None:
        return (value,) * len(plan.steps)
    mean = sum(by[index] for index in plan.trained) / len(plan.trained)
    return tuple(value * part / mean for part in by)
