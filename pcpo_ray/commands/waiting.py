"""A sign of life on a terminal while a command loads and computes: what it is doing, and for how long."""

import sys
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from pcpo_ray.commands.progress import phase_text
from pcpo_ray.commands.status_text import duration


class Waiting:
    """A context manager; called with a text, it says that this goes on now. It shows nothing elsewhere."""

    def __init__(self, text: str, *, quiet: bool = False) -> None:
        self.text, self.since = text, time.monotonic()
        console = Console(file=sys.stdout)
        shown = console.is_terminal and not console.is_dumb_terminal and not console.is_jupyter and not quiet
        # without colours or beyond ASCII, "line" is the plainest of rich's spinners
        self.spinner = Spinner("line")
        self.live = (
            Live(get_renderable=self._line, console=console, transient=True, refresh_per_second=4) if shown else None
        )

    def __enter__(self) -> "Waiting":
        if self.live is not None:
            self.live.start(refresh=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.live is not None:
            self.live.stop()

    def __call__(self, text: str) -> None:
        """Name what goes on from now on."""
        if text.partition(":")[0] != self.text.partition(":")[0]:
            self.since = time.monotonic()
        self.text = text

    @property
    def watch(self) -> Callable[[str, int, int, int], None] | None:
        """A function that shows how far a phase of a dispatcher has come; None where nothing is shown."""
        if self.live is None:
            return None
        return lambda phase, step, done, total: self(phase_text(phase, step, done, total))

    def _line(self) -> RenderableType:
        self.spinner.update(text=Text(f"{self.text}, {duration(time.monotonic() - self.since)}"))
        return self.spinner
