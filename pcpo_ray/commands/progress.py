"""Progress of a run: on a terminal a block that is redrawn, with lines above that stay; elsewhere stamped lines."""

import contextlib
import math
import shlex
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live

from pcpo_ray.commands import wrapped
from pcpo_ray.commands.block import Shown, by_role, interval, kind_of, signed
from pcpo_ray.commands.log import Level, Log, level_of, prints_in
from pcpo_ray.commands.status_text import duration
from pcpo_ray.config import TOTAL
from pcpo_ray.errors import AlarmError
from pcpo_ray.runs import look
from pcpo_ray.runs.lines import shown

if TYPE_CHECKING:
    from pcpo_ray.config import Run

FRAMES = 2.0
"""Drawings a second."""

FIRST, LATER = 10.0, 60.0
"""Seconds without a line after which a phase is named again elsewhere than on a terminal: at first, and at most."""

PHASES = {
    "publish": "publishing the weights",
    "sample_and_score": "sampling step {step}",
    "evaluate": "evaluating step {step}",
    "learn": "learning step {step}",
    "checkpoint": "saving the checkpoint of step {step}",
}
EXPLAINED = "the report says what each of these measures; pcpo-ray report {run} writes it now"
"""A line after the first evaluation; `run` names the run as its reader can."""

DIGITS = 12
"""Digits after the point of a change that is shown."""

UNITS = {"sample_and_score": "groups", "evaluate": "images"}


def phase_text(phase: str, step: int, done: int = 0, total: int = 0) -> str:
    """Name a phase of the loop, with how much of it is done."""
    text = PHASES.get(phase, phase).format(step=step)
    return f"{text}: {done}/{total} {UNITS.get(phase, '')}".rstrip() if total else text


class Display:
    """A context manager that shows a run: call `row` with each recorded line and `say` with anything else.

    `phase` and `watch` name what goes on. Errors while showing do not end the run; `failed` is told of the first.
    """

    def __init__(
        self,
        run: "Run",
        console: Console,
        *,
        level: Level = "info",
        as_json: bool = False,
        runs: str = look.RUNS,
        local: bool = False,
    ) -> None:
        self.run = run
        self.named = run.name if runs == look.RUNS else look.place_of(run.name, runs)
        self.console = console
        console.file = console.file  # what it is now; `prints_in` puts something else in its place
        self.failed: Callable[[str], None] = lambda message: None
        self.whole = True
        self.told = False
        """True once the log has the error that ended the run."""
        self.explained = False
        self.shown = Shown(
            name=run.name,
            steps=run.steps,
            every=run.evaluation.every,
            evaluated_as="held-out" if run.evaluation.held_out else "evaluated",
            in_turn=local,
        )
        on_terminal = console.is_terminal and not console.is_dumb_terminal and not as_json
        on_terminal = on_terminal and not console.is_jupyter  # a notebook has room for lines, and no lines to redraw
        self.log = Log(self._print, level=level, form="bare" if on_terminal else "json" if as_json else "stamped")
        self.live = (
            Live(self.shown, console=console, refresh_per_second=FRAMES, redirect_stdout=False, redirect_stderr=False)
            if on_terminal
            else None
        )
        self.ending = contextlib.ExitStack()
        self.over = threading.Event()
        self.again = FIRST

    def __enter__(self) -> "Display":
        with self._apart():
            if not self.console.quiet:  # a quiet run is silent itself, what others print is theirs
                self.ending.enter_context(prints_in(self.log))
            if self.live is not None:
                self.live.start(refresh=True)
            else:
                threading.Thread(target=self._repeat, name="progress", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.over.set()
        if kind is not None and not issubclass(kind, AlarmError):
            self.shown.phase = "stopped" if issubclass(kind, KeyboardInterrupt) else "failed"
        self.shown.ended = True
        with self._apart():
            self.ending.close()
        with self._apart():
            if self.live is not None:
                self.live.stop()
            elif kind is not None and issubclass(kind, Exception) and not issubclass(kind, AlarmError):
                self.log.write(f"failed: {error}", "error")
                self.told = True

    # -- what is shown --------------------------------------------------------------------------------------------

    def say(self, line: str, level: Level | None = None) -> None:
        """Print a line, above the block; its first words tell the level if none is given."""
        with self._apart():
            self.log.write(line, level or level_of(line))

    def phase(self, text: str) -> None:
        """Name a phase of the start or of the end."""
        with self._apart():
            changed = text != self.shown.phase
            self._enter(text)
            if self.live is None and changed:
                self.log.write(text)

    def watch(self, phase: str, step: int, done: int = 0, total: int = 0) -> None:
        """Show how far a phase of the loop has come."""
        with self._apart():
            text = phase_text(phase, step, done, total)
            if self._enter(text) and self.live is None:
                self.log.write(kind_of(text), "debug")

    def known(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Take the records of the run's earlier life, of which nothing is printed."""
        with self._apart():
            for row in rows:
                if row["kind"] == "evaluation":
                    self.shown.evaluated(row, TOTAL)
                else:
                    self.shown.learned(row, here=False)

    def row(self, row: Mapping[str, Any]) -> None:
        """Show a step or an evaluation that has just been recorded."""
        with self._apart():
            if row["kind"] == "evaluation":
                self.shown.evaluated(row, TOTAL)
                self.log.write(self._evaluated(row), record=row)
                if not self.explained:
                    self.explained = True
                    self.log.write(EXPLAINED.format(run=shlex.quote(self.named)))
            else:
                self.shown.learned(row)
                if self.live is None:
                    self.log.write(self._learned(row), record=row)

    def _evaluated(self, row: Mapping[str, Any]) -> str:
        trained = [reward.name for reward in self.run.rewards]
        names = sorted((name for name in row["rewards"] if name != TOTAL), key=lambda name: name not in trained)
        parts = [self._score(row, name, first=name == names[0]) for name in names if name in trained]
        watched = [self._score(row, name, first=name == names[0]) for name in names if name not in trained]
        measured = row.get("quality", {})
        watched += [f"{name} {shown(measured[name], '.3g')}" for name in ("frechet", "pairwise") if name in measured]
        told = [", ".join(parts)] if parts else []
        told += [f"not trained on: {', '.join(watched)}"] if watched else []
        return f"evaluation at step {row['step']}: {'; '.join(told)}"

    def _score(self, row: Mapping[str, Any], name: str, *, first: bool) -> str:
        """Say a reward's mean, its change since step 0 (of the `first` with its interval), and of how many images."""
        change = (row.get("changes") or {}).get(name) or {}
        mean, notes = change.get("mean"), []
        if mean is not None and math.isfinite(mean):
            mean = round(mean, DIGITS) + 0.0  # what rounding leaves of equal scores is no change
            notes.append(f"{signed(mean)}{_bounds(change)} since step 0" if first else signed(mean))
        images = row["prompts"] * self.run.evaluation.images
        count = (row.get("scored") or {}).get(name, images)
        if count < images:
            notes.append(f"of {count} of {images} images")
        return f"{name} {shown(row['rewards'][name]['mean'])}" + (f" ({'; '.join(notes)})" if notes else "")

    def _learned(self, row: Mapping[str, Any]) -> str:
        first = min(self.shown.rewards)
        reward = f"reward {shown(row['reward_mean'])} ± {shown(row['reward_std'], '.2g')}"
        if first < row["step"]:
            change = row["reward_mean"] - self.shown.rewards[first][0]
            reward += f" ({signed(change)} since step {first})"
        parts = [
            reward,
            f"clip fraction {shown(row['clip_fraction'], '.1%')}",
            f"{row['samples_per_second']:.1f} images/s",
            self.shown.time_left(),
            " ".join(by_role(row["idle"], in_turn=self.shown.in_turn)),
        ]
        return f"step {row['step']}/{self.run.steps}: " + "; ".join(part for part in parts if part)

    # -- how it is shown ------------------------------------------------------------------------------------------

    def _enter(self, text: str) -> bool:
        new = self.shown.enter(text)
        if new:
            self.again = FIRST
        return new

    def _repeat(self) -> None:
        """Name the phase again where nothing was printed for long: a log in which nothing moves looks like a hang."""
        while not self.over.wait(1.0):
            silent = time.monotonic() - self.log.wrote
            if silent < self.again:
                continue
            self.again = min(2 * self.again, LATER)
            with self._apart():
                self.log.write(f"{self.shown.phase}, {duration(time.monotonic() - self.shown.phase_began)}")

    def _print(self, line: str) -> None:
        # a command is copied in one piece, and a log's line stays one; prose on a terminal breaks between its words
        if self.live is not None and not line.startswith("  ") and "pcpo-ray " not in line:
            line = "\n".join(wrapped.rows(line, self.console.width))
        self.console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)

    @contextlib.contextmanager
    def _apart(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever rich raises over what it is to draw
            if self.whole:
                self.whole = False
                self.failed(f"a line could not be shown: {type(error).__name__}: {error}")


def _bounds(change: Mapping[str, Any]) -> str:
    bounds = interval(change)
    return f", {bounds.strip(' ()')}" if bounds else ""
