"""The steps of a DDIM sampler that predicts epsilon (arXiv 2010.02502, equations 12 and 16).

Notation, at each step: `alpha = alpha_bar / alpha_bar_prev`, `b = 1 - alpha_bar_prev`, and

    c1 = sqrt((1 - alpha_bar) / alpha)    the predicted noise that is removed
    c2 = sqrt(b - sigma^2)                the part of it that is put back
    x_next = x / sqrt(alpha) + (c2 - c1) epsilon + sigma z,    weight w = (c1 - c2) / sigma

Every sigma up to sqrt(b) leads to the same marginals. At eta = 1 (DDPM's variance) w is the least weight of the step:
c1^2 = b (1 + least^2). A step gets a weight w* by solving w* sigma = c1 - c2 for sigma (PCPO, arXiv 2509.25774), which
squares to a quadratic with two roots.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pcpo_ray.algorithm.schedule import DiffusionSchedule
from pcpo_ray.algorithm.transitions import AffineStep
from pcpo_ray.errors import CreditError, ScheduleError

ROUNDING = 1e-9  # fraction of w*; a w* that is closer below the least weight means the least weight itself


@dataclass(frozen=True, kw_only=True)
class _Level:
    """One step of the schedule, in the module's notation; `removed` is exactly c1^2 - b = (1 - alpha) / alpha."""

    timestep: int
    alpha: float
    b: float
    c1: float
    removed: float

    @property
    def native_sigma(self) -> float:
        """The sigma at eta = 1."""
        return math.sqrt(self.b * self.removed) / self.c1

    @property
    def least(self) -> float:
        """The least weight of any sigma, reached at eta = 1; inf for a step that ends without noise."""
        return math.sqrt(self.removed / self.b) if self.b > 0 else math.inf

    def discriminant_root(self, w_star: float) -> float:
        """Compute sqrt(b (1 + w*^2) - c1^2). Raises CreditError where it is not real."""
        if not self.least * (1 - ROUNDING) <= w_star < math.inf:
            raise CreditError(
                f"no noise level gives the step at timestep {self.timestep} the weight {w_star:.6g}: the least it can "
                f"have is {self.least:.6g}; ask for a finite w_star of at least that, or leave the step untrained"
            )
        return math.sqrt(self.b * max(0.0, w_star**2 - self.least**2))


def steps(schedule: DiffusionSchedule, *, eta: float = 1.0) -> tuple[AffineStep, ...]:
    """Make the T steps with `eta` times the std of DDPM: 0 is deterministic, 1 is DDPM.

    Raises ScheduleError if eta is negative, or a step would get more noise than is left after it.
    """
    return steps_with_sigma(schedule, [eta * level.native_sigma for level in _levels(schedule)])


def steps_with_sigma(schedule: DiffusionSchedule, sigmas: Sequence[float]) -> tuple[AffineStep, ...]:
    """Make the T steps with these stds. Raises ScheduleError unless there are T, each from 0 to sqrt(b)."""
    if len(sigmas) != len(schedule):
        raise ScheduleError(f"got {len(sigmas)} sigmas for {len(schedule)} steps; give one for each")
    made = []
    for level, sigma in zip(_levels(schedule), sigmas, strict=True):
        if not 0 <= sigma <= math.sqrt(level.b) * (1 + ROUNDING):
            raise ScheduleError(
                f"the step at timestep {level.timestep} got sigma {sigma:.6g}; expected 0 to {math.sqrt(level.b):.6g}, "
                "all the noise that is left after it: use a smaller eta"
            )
        c2 = math.sqrt(max(0.0, level.b - sigma**2))
        made.append(AffineStep(scale=1 / math.sqrt(level.alpha), gain=c2 - level.c1, std=sigma))
    return tuple(made)


def plus_sigma(schedule: DiffusionSchedule, index: int, w_star: float) -> float:
    """Compute the larger root for step `index`: [w* c1 + sqrt(b (1 + w*^2) - c1^2)] / (1 + w*^2).

    It gives the step the weight w* only while w* <= sqrt(1 + least^2). Beyond that it solves (c1 + c2) / sigma = w*,
    because squaring has turned the sign of c2, and the true weight stays as uneven as it was. Raises CreditError if w*
    is below the step's least weight.
    """
    level = _levels(schedule)[index]
    return (w_star * level.c1 + level.discriminant_root(w_star)) / (1 + w_star**2)


def minus_sigma(schedule: DiffusionSchedule, index: int, w_star: float) -> float:
    """Compute the smaller root for step `index`, which gives it the weight w* for every w*.

    It is written as removed / (w* c1 + sqrt(...)), which equals the textbook form without its cancellation. Raises
    CreditError if w* is below the step's least weight.
    """
    level = _levels(schedule)[index]
    return level.removed / (w_star * level.c1 + level.discriminant_root(w_star))


def most_demanding(schedule: DiffusionSchedule, trained: Sequence[int]) -> int:
    """Find the index of the trained step with the largest least weight, which sets `least_weight`."""
    levels = _levels(schedule)
    return max(trained, key=lambda index: levels[index].least)


def least_weight(schedule: DiffusionSchedule, trained: Sequence[int]) -> float:
    """Compute the least w* that all `trained` steps can have at once: the largest of their weights at eta = 1.

    Raises CreditError if it is infinite, naming the step that ends without noise.
    """
    worst = _levels(schedule)[most_demanding(schedule, trained)]
    if math.isinf(worst.least):
        raise CreditError(
            f"the step at timestep {worst.timestep} ends without noise (alpha_bar_prev is 1), so no finite weight is "
            "feasible; leave it untrained"
        )
    return worst.least


def _levels(schedule: DiffusionSchedule) -> list[_Level]:
    return [
        _Level(
            timestep=timestep,
            alpha=now / after,
            b=1 - after,
            c1=math.sqrt((1 - now) * after / now),
            removed=(after - now) / now,
        )
        for timestep, now, after in zip(schedule.timesteps, schedule.alpha_bar, schedule.alpha_bar_prev, strict=True)
    ]
