"""Schedules of diffusers' flow pipelines."""

from collections.abc import Mapping, Sequence
from typing import Any

from pcpo_ray.algorithm.schedule import FlowSchedule
from pcpo_ray.config import Sampling
from pcpo_ray.errors import ModelError
from pcpo_ray.models import schedulers


def schedule(
    scheduler_config: Mapping[str, Any],
    sampling: Sampling,
    *,
    tokens: int,
    sigmas: Sequence[float] | None,
    mu: float | None = None,
) -> FlowSchedule:
    """Build the schedule of a FlowMatchEulerDiscreteScheduler given `sigmas`, for images of so many tokens.

    A dynamic shift is exp(`mu`), or the scheduler's own of the number of tokens. With sampling.shift, an even grid is
    shifted instead, as in DanceGRPO's code. Raises ScheduleError and ModelError.
    """
    settings = schedulers.understood(scheduler_config, schedulers.FLOW)
    if sampling.shift is not None:
        return FlowSchedule.shifted(steps=sampling.steps, shift=sampling.shift)
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    scheduler = schedulers.made(FlowMatchEulerDiscreteScheduler, settings)
    if not scheduler.config.use_dynamic_shifting:
        mu = None
    elif mu is None:
        names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        numbers = {name: scheduler.config[name] for name in names}
        if None in numbers.values():
            raise ModelError(f"the model's {schedulers.FILE} has use_dynamic_shifting with {numbers}; expected numbers")
        mu = calculate_shift(tokens, *numbers.values())
    if sigmas is None:
        schedulers.set_timesteps(scheduler, num_inference_steps=sampling.steps, mu=mu)
    else:
        schedulers.set_timesteps(scheduler, sigmas=list(sigmas), mu=mu)
    return FlowSchedule(times=tuple(float(t) for t in scheduler.sigmas))
