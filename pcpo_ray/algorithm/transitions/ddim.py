"""The steps of a DDIM sampler that predicts epsilon (arXiv 2010.02502, equations 12 and 16).

Notation, at each step: `alpha = alpha_bar / alpha_bar_prev`, `b = 1 - alpha_bar_prev`, and

    c1 = sqrt((1 - alpha_bar) / alpha)    what removing all of the predicted noise takes away
    c2 = sqrt(b - sigma^2)                what of it is put back
    x_next = x / sqrt(alpha) + (c2 - c1) epsilon + sigma z,    weight w = (c1 - c2) / sigma

Every sigma up to sqrt(b) leads to the same marginals. At eta = 1 (DDPM's variance) w is the least that the step can
have: c1^2 = b (1 + least^2). A step is given a weight w* by solving w* sigma = c1 - c2 for sigma (PCPO, arXiv
2509.25774), which squares to a quadratic with two roots.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pcpo_ray.algorithm.schedule import DiffusionSchedule
from pcpo_ray.algorithm.transitions import AffineStep
from pcpo_ray.errors import CreditError, ScheduleError

ROUNDING = 1e-9  # of w*: a root that is missed by less was asked for at the least weight itself


@dataclass(frozen=True, kw_only=True)
class _Level:
    """One step of the schedule, in the module's notation; `removed` is c1^2 - b = (1 - alpha) / alpha, exactly."""

    timestep: int
    alpha: float
    b: float
    c1: float
    removed: float

    @property
    def native_sigma(self) -> float:
        """sigma at eta = 1."""
        return math.sqrt(self.b * self.removed) / self.c1

    @property
    def least(self) -> float:
        """The least weight any sigma gives, reached at eta = 1; inf for a step that ends without noise."""
        return math.sqrt(self.removed / self.b) if self.b > 0 else math.inf

    def discriminant_root(self, w_star: float) -> float:
        """sqrt(b (1 + w*^2) - c1^2). Raises CreditError where it is not real."""
        if not self.least * (1 - ROUNDING) <= w_star < math.inf:
            raise CreditError(
                f"no noise level gives the step at timestep {self.timestep} the weight {w_star:.6g}: the least it can "
                f"have is {self.least:.6g}; ask for a finite w_star of at least that, or leave the step untrained"
            )
        return math.sqrt(self.b * max(0.0, w_star**2 - self.least**2))


def steps(schedule: DiffusionSchedule, *, eta: float = 1.0) -> tuple[AffineStep, ...]:
    """The T steps with `eta` times DDPM's deviation: 0 is deterministic, 1 is DDPM.

    Raises ScheduleError if eta is negative, or above what a step has room for.
    """
    return steps_with_sigma(schedule, [eta * level.native_sigma for level in _levels(schedule)])


def steps_with_sigma(schedule: DiffusionSchedule, sigmas: Sequence[float]) -> tuple[AffineStep, ...]:
    """The T steps with these deviations. Raises ScheduleError unless there are T, each from 0 to sqrt(b)."""
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
    """The larger root for step `index`: [w* c1 + sqrt(b (1 + w*^2) - c1^2)] / (1 + w*^2).

    It gives the step the weight w* only while w* <= sqrt(1 + least^2). Past that it solves (c1 + c2) / sigma = w*, with
    c2's sign turned by the squaring, and the sampler's true weight stays as uneven as it was. Raises CreditError
    where w* is below the step's least weight.
    """
    level = _levels(schedule)[index]
    return (w_star * level.c1 + level.discriminant_root(w_star)) / (1 + w_star**2)


def minus_sigma(schedule: DiffusionSchedule, index: int, w_star: float) -> float:
    """The smaller root for step `index`, which gives it the weight w* whatever w* is.

    Written as removed / (w* c1 + sqrt(...)), the textbook form's equal without its cancellation. Raises CreditError
    where w* is below the step's least weight.
    """
    level = _levels(schedule)[index]
    return level.removed / (w_star * level.c1 + level.discriminant_root(w_star))


def most_demanding(schedule: DiffusionSchedule, trained: Sequence[int]) -> int:
    """The index of the trained step whose least weight is the greatest: the one that `least_weight` is set by."""
    levels = _levels(schedule)
    return max(trained, key=lambda index: levels[index].least)


def least_weight(schedule: DiffusionSchedule, trained: Sequence[int]) -> float:
    """The least w* that all the `trained` steps can have at once: the greatest of their weights at eta = 1.

    Raises CreditError if that is no number, naming the step that ends without noise.
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
