"""The steps of a flow-matching sampler that keeps every time's share of noise (Flow-CPS, arXiv 2509.05952).

Notation as in flow_sde.py, and t' = t - dt, the time that a step ends at. The network's estimates of both ends,

    x0_hat = x - t v,    x1_hat = x + (1 - t) v,

are put together anew at t', with part of the noise of x1_hat replaced by fresh noise:

    x' = (1 - t') x0_hat + c x1_hat + sigma z,    c = sqrt(t'^2 - sigma^2),    0 <= sigma <= t'

so that x' holds as much noise as t' says, c^2 + sigma^2 = t'^2, however long the step; the SDE's steps (flow_sde.py)
hold more. In terms of x and v, with pull = t' - c,

    x' = (1 - pull) x - (dt + (1 - t) pull) v + sigma z,    weight w = (dt + (1 - t) pull) / sigma

Without noise it is the ODE's step. A step is given a weight W = zeta dt (PCPO, arXiv 2509.25774) by solving
W sigma = dt + (1 - t) (t' - c) for sigma, which squares to a quadratic; a sampler whose weights are proportionate of
themselves is ours, not in either paper.
"""

import math
from collections.abc import Sequence

from pcpo_ray.algorithm.schedule import FlowSchedule
from pcpo_ray.algorithm.transitions import AffineStep
from pcpo_ray.errors import CreditError, ScheduleError

ROUNDING = 1e-9  # of zeta: what is less by no more than this was meant to be the least


def steps(schedule: FlowSchedule, sigmas: Sequence[float]) -> tuple[AffineStep, ...]:
    """The T steps with fresh noise of these deviations; 0 makes a step of the ODE.

    Raises ScheduleError unless there are T, each from 0 to the time that its step ends at (for the last that is 0).
    """
    if len(sigmas) != len(schedule):
        raise ScheduleError(f"got {len(sigmas)} sigmas for {len(schedule)} steps; give one for each")
    made = []
    for index, (time, after, sigma) in enumerate(zip(schedule.times, schedule.times[1:], sigmas, strict=False)):
        if not 0 <= sigma <= after:
            raise ScheduleError(
                f"step {index} of {len(schedule)} (t from {time:.6g} to {after:.6g}) got sigma {sigma:.6g}; expected 0 "
                f"to {after:.6g}, all the noise that is left after it"
            )
        kept = math.sqrt(after**2 - sigma**2)
        pull = sigma**2 / (after + kept) if sigma else 0.0  # after - kept, without its cancellation
        made.append(AffineStep(scale=1 - pull, gain=-(time - after + (1 - time) * pull), std=sigma))
    return tuple(made)


def renewed_noise(schedule: FlowSchedule, eta: float) -> tuple[float, ...]:
    """Flow-CPS's deviations, t' sin(eta pi / 2): the same share of the noise is fresh at every step, all at eta = 1.

    With more steps at the same eta more noise is renewed in all. Raises ScheduleError unless eta is from 0 to 1.
    """
    if not 0 <= eta <= 1:
        raise ScheduleError(f"got eta {eta}; expected 0 (no fresh noise) to 1 (nothing but fresh noise)")
    return tuple(after * math.sin(eta * math.pi / 2) for after in schedule.times[1:])


def proportionate_noise(schedule: FlowSchedule, zeta: float | None = None) -> tuple[float, ...]:
    """The deviations at which every step's weight is zeta dt; 0 for the last, which ends without noise.

    The smaller root: sigma = dt m / (W (1 - t') t + (1 - t) sqrt(t'^2 W^2 - dt m)) with W = zeta dt and m as in
    `least_zeta`, written without the textbook form's cancellation. It gives the step that weight whatever zeta is. The
    larger one would only for W <= t (1 - t') / t'; past that it solves W sigma = dt + (1 - t) (t' + c), with c's sign
    turned by the squaring. `zeta` None takes the least that all steps can have, and so the most noise.

    Raises CreditError where a step cannot have the weight, naming it and the least zeta.
    """
    steps = len(schedule)
    least = [least_zeta(schedule, index) for index in range(steps - 1)]
    wanted = max(least, default=0.0) if zeta is None else zeta
    for index, needed in enumerate(least):
        if not needed * (1 - ROUNDING) <= wanted < math.inf:
            raise CreditError(
                f"no noise level gives step {index} of {steps} (t from {schedule.times[index]:.6g} to "
                f"{schedule.times[index + 1]:.6g}) the weight zeta dt with zeta {wanted:.6g}: the least zeta that it "
                f"can have is {needed:.6g}, and all steps together {max(least):.6g}; set sampling.process.zeta to a "
                "finite number of at least that, or to null for it. Fewer steps or a larger sampling.shift lower it"
            )
    sigmas = []
    for time, after, dt in zip(schedule.times, schedule.times[1:-1], schedule.dt, strict=False):
        weight, demand = wanted * dt, dt * _spread(time, after)
        root = math.sqrt(max(0.0, (after * weight) ** 2 - demand))
        sigma = demand / (weight * (1 - after) * time + (1 - time) * root)
        sigmas.append(min(sigma, after))  # rounding may exceed it where all noise is fresh
    return (*sigmas, 0.0)


def least_zeta(schedule: FlowSchedule, index: int) -> float:
    """The least weight of step `index` per time covered, sqrt(m / dt) / t' with m = t (1 - t') + t' (1 - t).

    No sigma gives the step a smaller weight. inf for the last step, which leaves no noise.
    """
    time, after = schedule.times[index : index + 2]
    return math.sqrt(_spread(time, after) / (time - after)) / after if after > 0 else math.inf


def _spread(time: float, after: float) -> float:
    """m, as above: (t + t' - 2 t t'), all terms positive."""
    return time * (1 - after) + after * (1 - time)
