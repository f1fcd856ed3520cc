"""The steps of a flow-matching sampler that keeps the noise level of every time (Flow-CPS, arXiv 2509.05952).

Notation as in flow_sde.py, and t' = t - dt, the time at which a step ends. The network's estimates of both ends,

    x0_hat = x - t v,    x1_hat = x + (1 - t) v,

are mixed again at t', with part of the noise of x1_hat replaced by fresh noise:

    x' = (1 - t') x0_hat + c x1_hat + sigma z,    c = sqrt(t'^2 - sigma^2),    0 <= sigma <= t'

so that x' has the noise level t', c^2 + sigma^2 = t'^2, however long the step. Steps of the SDE (flow_sde.py) have
more noise than that. In terms of x and v, with pull = t' - c,

    x' = (1 - pull) x - (dt + (1 - t) pull) v + sigma z,    weight w = (dt + (1 - t) pull) / sigma

Without noise it is the step of the ODE. A step gets a weight W = zeta dt (PCPO, arXiv 2509.25774) by solving
W sigma = dt + (1 - t) (t' - c) for sigma, which squares to a quadratic. A sampler whose own weights are proportionate
is ours; it is in neither paper.
"""

import math
from collections.abc import Sequence

from pcpo_ray.algorithm.schedule import FlowSchedule
from pcpo_ray.algorithm.transitions import AffineStep
from pcpo_ray.errors import CreditError, ScheduleError

ROUNDING = 1e-9  # fraction of zeta; a zeta that is closer below the least means the least itself


def steps(schedule: FlowSchedule, sigmas: Sequence[float]) -> tuple[AffineStep, ...]:
    """Make the T steps with fresh noise of these stds; 0 gives a step of the ODE.

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
    """Give Flow-CPS's stds, t' sin(eta pi / 2): the same fraction of the noise is fresh at every step.

    At eta = 1 all of it is fresh. At the same eta, more steps renew more noise in all. Raises ScheduleError unless eta
    is from 0 to 1.
    """
    if not 0 <= eta <= 1:
        raise ScheduleError(f"got eta {eta}; expected 0 (no fresh noise) to 1 (nothing but fresh noise)")
    return tuple(after * math.sin(eta * math.pi / 2) for after in schedule.times[1:])


def proportionate_noise(schedule: FlowSchedule, zeta: float | None = None) -> tuple[float, ...]:
    """Compute the stds at which every step's weight is zeta dt; 0 for the last step, which ends without noise.

    This is the smaller root, sigma = dt m / (W (1 - t') t + (1 - t) sqrt(t'^2 W^2 - dt m)), with W = zeta dt and m as
    in `least_zeta`, written without the cancellation of the textbook form. It gives the step that weight for every
    zeta. The larger root does so only for W <= t (1 - t') / t'; beyond that it solves W sigma = dt + (1 - t) (t' + c),
    because squaring has turned the sign of c. `zeta` None takes the least that all steps can have, which gives the most
    noise.

    Raises CreditError if a step cannot have the weight, naming the step and the least zeta.
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
    """Compute the least weight of step `index` per time covered, sqrt(m / dt) / t' with m = t (1 - t') + t' (1 - t).

    No sigma gives the step a smaller weight. The last step leaves no noise and gives inf.
    """
    time, after = schedule.times[index : index + 2]
    return math.sqrt(_spread(time, after) / (time - after)) / after if after > 0 else math.inf


def _spread(time: float, after: float) -> float:
    """Compute m, as above: t + t' - 2 t t', written with positive terms only."""
    return time * (1 - after) + after * (1 - time)
