"""A sign of life while a command loads and computes: what it is doing, for how long, and how much of it is done.

On a terminal it is a line that is redrawn; elsewhere each phase is a line, or nothing is said.
"""

import sys
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from pcpo_ray.commands import wrapped
from pcpo_ray.commands.block import kind_of
from pcpo_ray.commands.progress import phase_text
from pcpo_ray.commands.status_text import duration

BAR = 24
"""Columns of the bar."""


class Waiting:
    """A context manager; called with a text, it says that this goes on now, `done` of `total` (0: not countable).

    `quiet` says nothing at all, `lines=False` nothing elsewhere than on a terminal.
    """

    def __init__(self, text: str, *, quiet: bool = False, lines: bool = True) -> None:
        self.text, self.since, self.lines = "", time.monotonic(), lines and not quiet
        self.done = self.total = 0
        console = self.console = Console(file=sys.stdout, quiet=quiet)
        shown = console.is_terminal and not console.is_dumb_terminal and not console.is_jupyter and not quiet
        # without colours or beyond ASCII, "line" is the plainest of rich's spinners
        self.spinner = Spinner("line")
        self.live = (
            Live(get_renderable=self._line, console=console, transient=True, refresh_per_second=4) if shown else None
        )
        self(text)

    def __enter__(self) -> "Waiting":
        if self.live is not None:
            self.live.start(refresh=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.live is not None:
            self.live.stop()

    def __call__(self, text: str, done: int = 0, total: int = 0) -> None:
        """Name what goes on from now on."""
        if kind_of(text) != kind_of(self.text):
            self.since = time.monotonic()
            if self.live is None and self.lines:
                print(kind_of(text), flush=True)
        self.text, self.done, self.total = text, done, total

    def say(self, line: str, *, hang: int = 0) -> None:
        """Print a line, above the one that is redrawn; `hang` as in wrapped.py."""
        wrapped.say(self.console, line, hang=hang)

    @property
    def watch(self) -> Callable[[str, int, int, int], None] | None:
        """A function that shows how far a phase of a dispatcher has come; None where nothing is shown."""
        if self.live is None:
            return None
        return lambda phase, step, done, total: self(phase_text(phase, step, done, total), done, total)

    def _line(self) -> RenderableType:
        self.spinner.update(text=Text(f"{self.text}, {duration(time.monotonic() - self.since)}"))
        if not self.total:
            return self.spinner
        line = Table.grid(padding=(0, 1))
        line.add_row(self.spinner, ProgressBar(total=self.total, completed=self.done, width=BAR))
        return line
