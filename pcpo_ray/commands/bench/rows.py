"""A row of a benchmark: a figure beside its limit, both measured in turn in the same run, and what it is to reach."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pcpo_ray.errors import BenchError

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Of a number over repeats: the median, and the least and the greatest."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Raises BenchError where there are none."""
    if not values:
        raise BenchError("there are no repeats to sum up; measure at least one (--repeats 1)")
    return Spread(median=statistics.median(values), low=min(values), high=max(values))


@dataclass(frozen=True, kw_only=True)
class Goal:
    """The median of the ratio, or of the figure itself, is to be at least, or at most, `value`."""

    bound: Literal["at least", "at most"]
    value: float
    of: Literal["ratio", "figure"] = "ratio"


@dataclass(frozen=True, kw_only=True)
class Row:
    """`figures` and `limits` have an element a repeat, in `unit`, taken in turn; ratio = figure / limit.

    `limit` says what the limits are; without any there is no ratio. `facts` is what else was seen. A row that could not
    be measured here says why in `unmeasured`, and has no figures. Raises BenchError where figures and limits are not
    as many.
    """

    name: str
    unit: str
    figures: tuple[float, ...] = ()
    limits: tuple[float, ...] = ()
    limit: str = ""
    goal: Goal | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    unmeasured: str = ""

    def __post_init__(self) -> None:
        if self.limits and len(self.limits) != len(self.figures):
            raise BenchError(
                f"{self.name} has {len(self.figures)} figures and {len(self.limits)} limits; expected one of each a "
                "repeat"
            )
        if bool(self.figures) == bool(self.unmeasured):
            raise BenchError(f"{self.name} has {len(self.figures)} figures and unmeasured={self.unmeasured!r}")

    @property
    def ratios(self) -> tuple[float, ...]:
        """Each repeat's figure by its own limit, so that a drift of the machine hits both."""
        return (
            tuple(figure / limit for figure, limit in zip(self.figures, self.limits, strict=True))
            if self.limits
            else ()
        )

    @property
    def by_figure(self) -> bool:
        """Whether such rows are compared by their figures: where there are no limits, or the goal is of figures."""
        return not self.limits or (self.goal is not None and self.goal.of == "figure")

    @property
    def judged(self) -> tuple[float, ...]:
        """What rows are compared by: ratios or figures."""
        return self.figures if self.by_figure else self.ratios

    @property
    def reached(self) -> bool | None:
        """Whether the goal is; None where there is none, or nothing was measured."""
        if self.goal is None or self.unmeasured:
            return None
        found = spread(self.ratios if self.goal.of == "ratio" else self.figures).median
        return found >= self.goal.value if self.goal.bound == "at least" else found <= self.goal.value


def synchronize() -> None:
    """Wait for the GPU, where there is one: until then its work has only been asked for."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(work: Callable[[], Any]) -> float:
    """Seconds that it takes, the GPU's share included."""
    synchronize()
    started = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - started


def alternate(
    figure: Callable[[], float], limit: Callable[[], float], repeats: int, say: Say, *, warm: bool = True
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Figures and limits measured in turn, first the one and then the other, in an order that changes each time.

    Each is called once more before where it is to be `warm`: a first call is slower than all that follow.
    """
    if warm:
        say("warming up")
        figure(), limit()
    figures: list[float] = []
    limits: list[float] = []
    for repeat in range(repeats):
        pair = [(figure, figures), (limit, limits)]
        for measure, found in pair if repeat % 2 == 0 else reversed(pair):
            found.append(measure())
        say(f"repeat {repeat + 1} of {repeats}: {figures[-1]:.4g}, limit {limits[-1]:.4g}")
    return tuple(figures), tuple(limits)
