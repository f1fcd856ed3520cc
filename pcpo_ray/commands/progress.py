"""Progress of a run: a live table on a terminal, plain lines elsewhere."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from pcpo_ray import config
from pcpo_ray.config import TOTAL
from pcpo_ray.runs.lines import shown


class Display:
    """A context manager that shows a run: call `row` with each recorded line and `say` with anything else.

    Errors while showing do not end the run; `failed` is told of the first.
    """

    def __init__(self, run: config.Run, console: Console) -> None:
        self.run = run
        self.console = console
        self.failed: Callable[[str], None] = lambda message: None
        self.whole = True
        self.started = time.monotonic()
        self.step_seconds: list[float] = []
        self.shown: dict[str, str] = {}
        self.bar = Progress(
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        self.task = self.bar.add_task(run.name, total=run.steps)
        self.live = Live(self._render(), console=console, transient=True) if console.is_terminal else None

    def __enter__(self) -> "Display":
        if self.live is not None:
            with self._apart():
                self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.live is not None:
            with self._apart():
                self.live.stop()

    def say(self, line: str) -> None:
        """Print a line."""
        with self._apart():
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def row(self, row: Mapping[str, Any]) -> None:
        """Show a step or an evaluation that has just been recorded."""
        with self._apart():
            line = self._evaluated(row) if row["kind"] == "evaluation" else self._learned(row)
            if self.live is None:
                self.say(line)
            else:
                self.live.update(self._render())

    @contextlib.contextmanager
    def _apart(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever rich raises over what it is to draw
            if self.whole:
                self.whole = False
                self.failed(f"a line could not be shown: {type(error).__name__}: {error}")

    def _evaluated(self, row: Mapping[str, Any]) -> str:
        means = {name: value["mean"] for name, value in row["rewards"].items() if name != TOTAL}
        text = ", ".join(f"{name} {shown(mean)}" for name, mean in means.items())
        measured = row.get("quality", {})
        text += "".join(
            f", {name} {shown(measured[name], '.3g')}" for name in ("frechet", "pairwise") if name in measured
        )
        self.shown[f"{self.run.of_evaluation('prompts')} ({row['images']} images, step {row['step']})"] = text
        return f"evaluation at step {row['step']}: {text}"

    def _learned(self, row: Mapping[str, Any]) -> str:
        self.step_seconds.append(row["seconds"])
        recent = self.step_seconds[-10:]
        left = (self.run.steps - row["step"]) * sum(recent) / len(recent)
        idle = ", ".join(f"{role} {share:.0%}" for role, share in row["idle"].items())
        now = {
            "reward": f"{shown(row['reward_mean'])} ± {shown(row['reward_std'], '.2g')}",
            "clip fraction": f"{row['clip_fraction']:.1%}",
            "samples/s": f"{row['samples_per_second']:.1f}",
            "seconds left": f"{left:.0f}",
            "waiting": idle,
        }
        self.shown.update(now)
        self.bar.update(self.task, completed=row["step"])
        return f"step {row['step']}/{self.run.steps}: " + "; ".join(f"{name} {text}" for name, text in now.items())

    def _render(self) -> Group:
        table = Table.grid(padding=(0, 2))
        for name, text in self.shown.items():
            table.add_row(Text(name, style="dim"), Text(text))
        return Group(self.bar, table)
