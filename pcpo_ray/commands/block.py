"""The block that a terminal shows of a run: a bar, the phase, the reward and the roles, always as many lines.

`Shown` holds the numbers, as they come from the run's records; `render` draws them.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.text import Text

from pcpo_ray.commands.status_text import duration
from pcpo_ray.runs.lines import shown

MARKS, ASCII_MARKS = "▁▂▃▄▅▆▇█", "_.-=+*%#"
RECENT = 10
"""The number of newest steps from which the time left is told."""

WIDEST = 100
"""Columns that the bar ends at, on a wider terminal."""


def sparkline(values: Sequence[float], width: int, marks: str = MARKS) -> str:
    """Draw the values as a row of marks, at most `width`, each the mean of those it stands for."""
    known = [value for value in values if math.isfinite(value)]
    if not known or width < 1:
        return ""
    count = min(width, len(known))
    edges = [round(place * len(known) / count) for place in range(count + 1)]
    means = [sum(known[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    span = high - low
    top = len(marks) - 1
    return "".join(marks[round((mean - low) / span * top) if span > 0 else top // 2] for mean in means)


def signed(value: float) -> str:
    """Format a change, with its sign."""
    return shown(value, "+.3g")


@dataclass
class Shown:
    """The numbers of a run while it goes on. Times are seconds on the clock `now`."""

    name: str
    steps: int
    every: int
    """Steps from one evaluation to the next."""
    evaluated_as: str = "held-out"
    """The name of evaluations: held-out, or evaluated where their prompts are not held out."""
    in_turn: bool = False
    """True for roles that share a process: how long each worked is told, as only one of them works at a time."""
    now: Callable[[], float] = time.monotonic
    started: float = field(default=math.nan)
    phase: str = "starting"
    phase_began: float = field(default=math.nan)
    step: int = 0
    rewards: dict[int, tuple[float, float]] = field(default_factory=dict)
    """Mean and std of the batches' rewards, by step."""
    seconds: list[float] = field(default_factory=list)
    evaluations: dict[int, tuple[float, Mapping[str, Any] | None]] = field(default_factory=dict)
    """The evaluations' mean reward, and its change since step 0 with an interval, by step."""
    evaluation_seconds: float = 0.0
    idle: Mapping[str, float] = field(default_factory=dict)
    ended: bool = False

    def __post_init__(self) -> None:
        self.started = self.phase_began = self.now()

    def enter(self, phase: str) -> bool:
        """Note the phase; return whether its words are new, apart from the numbers in them."""
        before, self.phase = self.phase, phase
        if kind_of(phase) == kind_of(before):
            return False
        self.phase_began = self.now()
        return True

    def learned(self, row: Mapping[str, Any], *, here: bool = True) -> None:
        """Take a step's record; `here` tells whether it was made by this process."""
        self.step = row["step"]
        self.rewards = {step: value for step, value in self.rewards.items() if step < self.step}  # after a rewind
        self.rewards[self.step] = (row["reward_mean"], row["reward_std"])
        self.idle = row["idle"]
        if here:
            self.seconds = [*self.seconds, row["seconds"]][-RECENT:]

    def evaluated(self, row: Mapping[str, Any], total: str) -> None:
        """Take an evaluation's record; `total` names the trained reward."""
        mean = row["rewards"].get(total, {}).get("mean")
        change = (row.get("changes") or {}).get(total)
        self.evaluations = {step: value for step, value in self.evaluations.items() if step < row["step"]}
        self.evaluations[row["step"]] = (math.nan if mean is None else mean, change)
        self.evaluation_seconds = row.get("seconds", 0.0)

    @property
    def left(self) -> float | None:
        """The seconds that the run still takes, as the last steps and the last evaluation tell; None before a step."""
        if not self.seconds:
            return None
        ahead = range(self.step + 1, self.steps + 1)
        evaluations = sum(step == self.steps or step % self.every == 0 for step in ahead)
        return len(ahead) * sum(self.seconds) / len(self.seconds) + evaluations * self.evaluation_seconds

    def time_left(self) -> str:
        """Say how long the run still takes."""
        left = self.left
        return "" if left is None or self.step >= self.steps else f"{duration(left)} left"

    # -- drawing --------------------------------------------------------------------------------------------------

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, ascii_only = max(1, options.max_width - 1), options.ascii_only
        yield from self._bar(console, options, min(width, WIDEST))
        for name, text in self._rows(width, ascii_only):
            yield _cut(Text.assemble((f"{name:<10}", "dim"), text), width, ascii_only)

    def _bar(self, console: Console, options: ConsoleOptions, width: int) -> RenderResult:
        took = duration(self.now() - self.started)
        times = ", ".join(part for part in (took, self.time_left()) if part)
        end = f"  {self.step}/{self.steps}  {times}"
        name = self.name if len(self.name) <= width // 3 else self.name[: width // 3 - 1] + "~"
        room = width - len(name) - 1 - len(end)
        if room < 5:
            yield _cut(Text(f"{name}{end}"), width, options.ascii_only)
            return
        yield Segment(f"{name} ", console.get_style("bold"))
        bar = ProgressBar(total=self.steps, completed=self.step, width=room)
        yield from console.render(bar, options.update(width=room))
        yield Segment(end)
        yield Segment.line()

    def _rows(self, width: int, ascii_only: bool) -> list[tuple[str, Text]]:
        since = self.now() - self.phase_began
        name, shares = by_role(self.idle, in_turn=self.in_turn)
        phase = Text(self.phase if self.ended else f"{self.phase}, {duration(since)}")
        return [
            ("phase", phase),
            ("reward", self._reward(width - 10, ascii_only)),
            (self.evaluated_as, self._evaluation(ascii_only)),
            (name, Text(shares or "-")),
        ]

    def _reward(self, width: int, ascii_only: bool) -> Text:
        if not self.rewards:
            return Text("- (known after the first step)", style="dim")
        first, last = min(self.rewards), max(self.rewards)
        (start, _), (now, std) = self.rewards[first], self.rewards[last]
        pm = "+/-" if ascii_only else "±"
        text = Text(f"{shown(now, '.3f')} {pm} {shown(std, '.2g')}")
        if first == last:
            return text
        text.append(f", start {shown(start, '.3f')}, change ")
        change = now - start
        text.append(signed(change), "green" if change > 0 else "red" if change < 0 else "")
        marks = ASCII_MARKS if ascii_only else MARKS
        line = sparkline([mean for mean, _ in self.rewards.values()], min(30, width - len(text) - 2), marks)
        return text.append(f"  {line}", "cyan")

    def _evaluation(self, ascii_only: bool) -> Text:
        if not self.evaluations:
            return Text("- (known after the first evaluation)", style="dim")
        first, last = min(self.evaluations), max(self.evaluations)
        (start, _), (now, change) = self.evaluations[first], self.evaluations[last]
        text = Text(f"{shown(now, '.4f')} at step {last}")
        if last == first:
            return text
        text.append(f", start {shown(start, '.4f')}, change ")
        text.append(signed(now - start), "green" if now > start else "red" if now < start else "")
        return text.append(interval(change))


def interval(change: Mapping[str, Any] | None) -> str:
    """Format the bounds of a change, if it has some."""
    if change is None or change.get("low") is None or not math.isfinite(change["low"]):
        return ""
    return f" ({signed(change['low'])} to {signed(change['high'])})"


def by_role(idle: Mapping[str, float], *, in_turn: bool) -> tuple[str, str]:
    """Say how idle each role was, or of roles that work in turn how long each worked; with a name for it."""
    told = {role: 1 - share for role, share in idle.items()} if in_turn else idle
    return "in turn" if in_turn else "idle", ", ".join(f"{role} {share:.0%}" for role, share in told.items())


def kind_of(phase: str) -> str:
    """Return a phase's words without its numbers."""
    return phase.partition(":")[0]


def _cut(text: Text, width: int, ascii_only: bool) -> Text:
    """Cut a line to the width, so that the block keeps its height."""
    text.no_wrap, text.overflow = True, "crop"
    if text.cell_len > width:
        text.truncate(width - 1)
        text.append("~" if ascii_only else "…")
    return text
