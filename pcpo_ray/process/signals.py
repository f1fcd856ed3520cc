"""Signals that ask a run to end: Ctrl-C, SIGTERM, a terminal that is gone (SIGHUP), the notices of batch systems.

Slurm can send SIGUSR1, Grid Engine and LSF send SIGUSR2 too, and a limit of CPU time SIGXCPU.

A signal that the process was started to ignore, as nohup does with SIGHUP, stays ignored. The first signal ends the
run; later ones would only damage what is being saved, so they print a line. A third Ctrl-C ends the process at once.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)

ENOUGH = 3
"""Ctrl-Cs after which a run ends at once, whatever it is doing."""

AGAIN = 0.05
"""Seconds after which a swallowed interrupt is raised again."""

Handler = Callable[[int, FrameType | None], None]

_raised = 0
_elsewhere = False
_ending: "Ending | None" = None


def interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, as Python's own handler does for Ctrl-C."""
    global _raised
    _raised += 1
    raise KeyboardInterrupt


def raised() -> int:
    """Return how many interrupts the handlers of this module have raised so far."""
    return _raised


def elsewhere() -> None:
    """Declare that the signals go to another process, this one's driver."""
    global _elsewhere
    _elsewhere = True


def may_come() -> bool:
    """Return whether a KeyboardInterrupt here may come from a signal that `raised` does not count."""
    default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return _in_main_thread() and not _elsewhere and default


def _in_main_thread() -> bool:
    """Return whether this is the only thread that may install handlers, and that signals interrupt."""
    return threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def handled(handler: Handler = interrupt) -> Iterator[None]:
    """Install the handler for all signals while the block runs; does nothing outside the main thread."""
    if not _in_main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in NUMBERS}
    try:
        _install(handler)
        yield
    finally:
        for number, handling in before.items():
            if handling is not None:
                signal.signal(number, handling)


def _install(handler: Handler) -> None:
    for number in NUMBERS:
        if signal.getsignal(number) not in (signal.SIG_IGN, None):  # None: a handler not installed from Python
            signal.signal(number, handler)


class Count:
    """Counts signals; `say` gets a line for each after the first."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.came = self.interrupts = 0

    def add(self, number: int) -> None:
        """Count a signal. Raises KeyboardInterrupt from the ENOUGHth Ctrl-C on."""
        self.came += 1
        self.interrupts += number == signal.SIGINT
        if number == signal.SIGINT and self.interrupts >= ENOUGH:
            interrupt(number, None)
        if self.came > 1:
            self.say(
                f"{signal.Signals(number).name}: the run is ending already and saves first; Ctrl-C for the "
                f"{ENOUGH}rd time ends it at once, and it continues from the checkpoint before"
            )


class Ending:
    """A command's signal handler from beginning to end: the first signal interrupts at once."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.count = Count(say)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.count.add(number)
        if self.count.came == 1:
            interrupt(number, frame)

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Allow code inside to set handlers, as Ray does; ours are restored, and its exits become interrupts."""
        try:
            yield
        except SystemExit:
            interrupt(signal.SIGTERM, None)
        finally:
            if _in_main_thread():
                _install(self)

    def again(self) -> None:
        """Raise once more what went no further than a destructor or a callback, of whose errors Python only tells."""
        self.count.came = 0
        later = threading.Timer(AGAIN, os.kill, (os.getpid(), signal.SIGTERM))
        later.daemon = True
        later.start()


@contextlib.contextmanager
def ended(say: Callable[[str], None] = lambda line: None) -> Iterator[Ending]:
    """Inside, the signals end a command: the first by KeyboardInterrupt, the others let it save.

    Outside the main thread this does nothing: signals go to whatever the main thread does.
    """
    global _ending
    if not _in_main_thread():
        yield Ending(say)
        return
    before, hook, ending = _ending, sys.unraisablehook, Ending(say)

    def unraisable(found: Any) -> None:
        if found.exc_type is not None and issubclass(found.exc_type, KeyboardInterrupt):
            ending.again()
        else:
            hook(found)

    _ending, sys.unraisablehook = ending, unraisable
    try:
        with handled(ending):
            yield ending
    finally:
        _ending, sys.unraisablehook = before, hook


class Noted:
    """Signals that have come, and take effect where somebody looks: what lies between two looks is done or not done."""

    def __init__(self) -> None:
        self.count = Count(lambda line: None) if _ending is None else _ending.count
        self.heeded = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.count.add(number)

    def look(self) -> None:
        """Raises KeyboardInterrupt, once, where a signal has come."""
        if self.count.came and not self.heeded:
            self.heeded = True
            interrupt(signal.SIGINT, None)


@contextlib.contextmanager
def noted() -> Iterator[Noted]:
    """Inside, the signals are noted; one that nobody looked for takes effect at the end."""
    found = Noted()
    with handled(found):
        yield found
    found.look()
