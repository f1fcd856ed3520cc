"""Signals that ask a run to end: Ctrl-C, SIGTERM, a terminal that is gone (SIGHUP), Slurm's notice (SIGUSR1).

One that the process was started to ignore, as nohup does with SIGHUP, stays ignored.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)

ENOUGH = 3
"""So many signals end a run at once, whatever it is at."""


def interrupt(number: int, frame: FrameType | None) -> None:
    """A handler that does what Python's own does for Ctrl-C."""
    raise KeyboardInterrupt


@contextlib.contextmanager
def handled(handler: Callable[[int, FrameType | None], None] = interrupt) -> Iterator[None]:
    """Inside, each of the signals is the handler's. In any other thread than the main one nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in NUMBERS}
    try:
        for number, handling in before.items():
            if handling not in (signal.SIG_IGN, None):  # None: somebody's who is no Python
                signal.signal(number, handler)
        yield
    finally:
        for number, handling in before.items():
            if handling is not None:
                signal.signal(number, handling)


class Noted:
    """Signals that have come, and take effect where somebody looks: what lies between two looks is done or not done."""

    def __init__(self) -> None:
        self.came = 0
        self.heeded = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.came += 1
        if self.came >= ENOUGH:
            raise KeyboardInterrupt

    def look(self) -> None:
        """Raises KeyboardInterrupt, once, where a signal has come."""
        if self.came and not self.heeded:
            self.heeded = True
            raise KeyboardInterrupt


@contextlib.contextmanager
def noted() -> Iterator[Noted]:
    """Inside, the signals are noted; one that nobody looked for takes effect at the end."""
    found = Noted()
    with handled(found):
        yield found
    found.look()
