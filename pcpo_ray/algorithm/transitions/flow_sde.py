"""The steps of a flow-matching sampler made stochastic (DanceGRPO, arXiv 2505.07818; Flow-GRPO, arXiv 2505.05470).

Notation: t runs from 1 (noise) to 0; x_t = (1 - t) x0 + t eps; the network predicts v = eps - x0; sigma is the step's
noise level; dt > 0 the time it covers. An Euler-Maruyama step of the SDE that has the ODE's marginals:

    x' = x - dt [ v + sigma^2 / (2 t) (x + (1 - t) v) ] + sigma sqrt(dt) z
    weight w = sqrt(dt) / sigma (1 + (1 - t) sigma^2 / (2 t))
"""

import math
from collections.abc import Sequence

from pcpo_ray.algorithm.schedule import FlowSchedule
from pcpo_ray.algorithm.transitions import AffineStep
from pcpo_ray.errors import ScheduleError


def steps(schedule: FlowSchedule, noise_levels: Sequence[float]) -> tuple[AffineStep, ...]:
    """Make the T steps with these noise levels; 0 gives a step of the ODE, without noise.

    Raises ScheduleError unless there are T noise levels, all finite and at or above 0.
    """
    if len(noise_levels) != len(schedule):
        raise ScheduleError(f"got {len(noise_levels)} noise levels for {len(schedule)} steps; give one for each")
    if not all(0 <= sigma < math.inf for sigma in noise_levels):
        raise ScheduleError(f"got noise levels {tuple(noise_levels)}; expected finite numbers at or above 0")
    made = []
    for time, dt, sigma in zip(schedule.times, schedule.dt, noise_levels, strict=False):
        pull = sigma**2 / (2 * time)  # towards the data, as the network predicts them
        made.append(AffineStep(scale=1 - dt * pull, gain=-dt * (1 + (1 - time) * pull), std=sigma * math.sqrt(dt)))
    return tuple(made)


def constant_noise(schedule: FlowSchedule, eta: float) -> tuple[float, ...]:
    """Give DanceGRPO's noise levels: `eta` (0.3 there) at every step."""
    return (eta,) * len(schedule)


def ratio_noise(schedule: FlowSchedule, a: float) -> tuple[float, ...]:
    """Give Flow-GRPO's noise levels, a sqrt(t / (1 - t)) with a = 0.7 there; at t = 1, a sqrt(1 / (1 - t of step 2)).

    Only the vanishing denominator takes the next step's time; the numerator stays 1, as Flow-GRPO samples.

    The weights that follow sum to 4.29675 for 10 steps at shift 3, the sampler's own sum. PCPO (arXiv 2509.25774)
    prints zeta = 4.315. That is the sum if the whole weight of the t = 1 step, its dt included, is set equal to the
    next step's (0.05102 to 0.06948): 4.3152134639895925. This changes no noise level, so it is no part of this
    function; `credit.proportionate_flow` keeps the sampler's own mean.

    Raises ScheduleError for a single step that starts at t = 1.
    """
    if schedule.times[0] == 1 and len(schedule) == 1:
        raise ScheduleError("got one step, from t = 1, where this noise level is infinite; use at least 2 steps")
    room = [1 - time if time < 1 else 1 - schedule.times[1] for time in schedule.times[:-1]]
    return tuple(a * math.sqrt(time / left) for time, left in zip(schedule.times, room, strict=False))
