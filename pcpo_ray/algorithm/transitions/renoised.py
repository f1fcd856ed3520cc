"""Pairs of noised images instead of a sampler's steps: advantage weighted matching (AWM, arXiv 2509.25050).

Notation as in flow_sde.py. An image x0 is drawn by any solver, and noised anew to each trained time,

    x_t = (1 - t) x0 + t eps,    target u = eps - x0,    log-probability -omega mean((v - u)^2)

where omega(t) weighs the times. That log-probability is, up to a constant, the one of a step in the form of
transitions/__init__.py which ends not at the next latents but at the target:

    x_next = -sqrt(2 omega) u = gain v + z,    gain = -sqrt(2 omega), scale = 0, std = 1,    weight w = sqrt(2 omega)
    z = sqrt(2 omega) (v_old - u)

so that log-ratio, clip, credit and divergence are those of any step. z is no noise that was drawn: it says how far the
old prediction was from the target.
"""

import math
from typing import Literal, assert_never

import torch
from jaxtyping import Float
from torch import Tensor

from pcpo_ray.algorithm.schedule import FlowSchedule
from pcpo_ray.algorithm.transitions import AffineStep

Omega = Literal["uniform", "time", "time_squared"]


def steps(schedule: FlowSchedule, omega: Omega) -> tuple[AffineStep, ...]:
    """Make the step of each time, with omega = 1, t or t^2."""
    return tuple(AffineStep(scale=0.0, gain=-math.sqrt(2 * _omega(omega, t)), std=1.0) for t in schedule.times[:-1])


def _omega(omega: Omega, time: float) -> float:
    match omega:
        case "uniform":
            return 1.0
        case "time":
            return time
        case "time_squared":
            return time**2
        case _:
            assert_never(omega)


def noised(
    schedule: FlowSchedule, index: int, clean: Float[Tensor, "N ..."], noise: Float[Tensor, "N ..."]
) -> Float[Tensor, "N ..."]:
    """Compute x_t of step `index` in the dtype of `clean`. Equal input gives equal bits on every device."""
    time = schedule.times[index]
    x0, eps = _precise(clean), _precise(noise)
    return ((1 - time) * x0 + time * eps).to(clean.dtype)


def residual(
    step: AffineStep, prediction: Float[Tensor, "N ..."], clean: Float[Tensor, "N ..."], noise: Float[Tensor, "N ..."]
) -> Float[Tensor, "N ..."]:
    """Compute z, in the dtype of `clean`, with the same guarantee."""
    target = _precise(noise) - _precise(clean)
    return (-step.gain * (_precise(prediction) - target)).to(clean.dtype)


def _precise(tensor: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
