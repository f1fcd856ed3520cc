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
    `limits` are the clip ranges, or the thresholds of a divergence. Without `quadratic` log-ratios have no such term.
    """

    credit_weights: Float[Tensor, " T"]
    signs: Float[Tensor, " T"]
    limits: Float[Tensor, " T"]
    factors: Float[Tensor, " T"]
    own_weights: Float[Tensor, " T"]
    scales: Float[Tensor, " T"]
    quadratic: bool

    @classmethod
    def of(cls, plan: Credit, settings: config.Objective, device: torch.device) -> "StepFactors":
        """Compute the numbers of a credit's steps under the config's objective."""
        own = [mix * step.weight for mix, step in zip(plan.mix, plan.steps, strict=True)]
        return cls(
            credit_weights=torch.tensor(plan.weights, device=device),
            signs=torch.tensor([step.sign for step in plan.steps], device=device),
            limits=torch.tensor(_limits(plan, settings), device=device),
            factors=torch.tensor(outside(plan, settings), device=device),
            own_weights=torch.tensor(own, dtype=torch.float64, device=device),
            scales=torch.tensor(_scales(plan, settings), device=device),
            quadratic=plan.quadratic,
        )


def inside(plan: Credit, settings: config.Objective) -> tuple[float, ...]:
    """Compute each timestep's weight inside the clip: what the log-ratio's linear term is multiplied by."""
    return tuple(scale * weight for scale, weight in zip(_scales(plan, settings), plan.weights, strict=True))


def outside(plan: Credit, settings: config.Objective) -> tuple[float, ...]:
    """Compute the factor of each timestep's loss: the credit's own, times that of objective.step_loss."""
    noises = [step.std for step in plan.steps] if settings.step_loss == "noise" else None
    return tuple(own * factor for own, factor in zip(plan.outside, scaled(plan, 1.0, noises), strict=True))


def _scales(plan: Credit, settings: config.Objective) -> tuple[float, ...]:
    """Compute the factor of each timestep's log-ratio."""
    if settings.log_ratio == "flow_cps":  # config.Run has checked that the credit is native, whose scales are 1
        return tuple(2 * step.std**2 for step in plan.steps)
    return plan.scales


def _limits(plan: Credit, settings: config.Objective) -> tuple[float, ...]:
    """Compute the distance at which each timestep's gradient is cut off."""
    if isinstance(settings, config.DivergenceMask):
        return (settings.threshold,) * len(plan.steps)
    return scaled(plan, settings.clip_range, plan.inside if settings.clip_scale == "weight" else None)


def scaled(plan: Credit, value: float, by: Sequence[float] | None) -> tuple[float, ...]:
    """Scale `value` at each timestep by its `by` over the trained timesteps' mean of `by` (None: not at all)."""
    if by is None:
        return (value,) * len(plan.steps)
    mean = sum(by[index] for index in plan.trained) / len(plan.trained)
    return tuple(value * part / mean for part in by)
