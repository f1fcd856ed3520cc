"""A benchmark's row: a figure beside its limit, measured alternately in the same run, and the goal."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pcpo_ray.errors import BenchError

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """The median, least and greatest of a number over repeats."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Summarise values. Raises BenchError if there are none."""
    if not values:
        raise BenchError("there are no repeats to sum up; measure at least one (--repeats 1)")
    return Spread(median=statistics.median(values), low=min(values), high=max(values))


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A bound on the median of the ratio, or of the figure itself: at least, or at most, `value`."""

    bound: Literal["at least", "at most"]
    value: float
    of: Literal["ratio", "figure"] = "ratio"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A benchmark's row: `figures` and `limits`, one per repeat, in `unit`; ratio = figure / limit.

    `limit` describes the limits; without any there is no ratio. `facts` are other observations. A row that could not be
    measured here has the reason in `unmeasured`, and no figures. Raises BenchError if the numbers of figures and limits
    differ.
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
        """Each repeat's figure over its own limit, so that a drift of the machine affects both."""
        return (
            tuple(figure / limit for figure, limit in zip(self.figures, self.limits, strict=True))
            if self.limits
            else ()
        )

    @property
    def by_figure(self) -> bool:
        """True if rows are compared by their figures: without limits, or with a goal for figures."""
        return not self.limits or (self.goal is not None and self.goal.of == "figure")

    @property
    def judged(self) -> tuple[float, ...]:
        """The numbers by which rows are compared: ratios or figures."""
        return self.figures if self.by_figure else self.ratios

    @property
    def reached(self) -> bool | None:
        """True if the goal is reached; None without a goal or figures."""
        if self.goal is None or self.unmeasured:
            return None
        found = spread(self.ratios if self.goal.of == "ratio" else self.figures).median
        return found >= self.goal.value if self.goal.bound == "at least" else found <= self.goal.value


def synchronize() -> None:
    """Wait for the GPU, if there is one: its work is only queued until then."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(work: Callable[[], Any]) -> float:
    """Measure the seconds that it takes, the GPU's work included."""
    synchronize()
    started = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - started


def alternate(
    figure: Callable[[], float], limit: Callable[[], float], repeats: int, say: Say, *, warm: bool = True
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Measure figures and limits alternately, in an order that changes with each repeat.

    With `warm`, each is called once before: a first call is slower than all others.
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
