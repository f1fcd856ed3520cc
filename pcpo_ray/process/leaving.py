"""The end of a command's process in which a thread of a library hangs: Python's own end would wait, or crash there."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

_hangs = False


def hangs() -> None:
    """Declare that a thread hangs which nothing can end."""
    global _hangs
    _hangs = True


def deaf() -> None:
    """Ignore Ctrl-C from here on: a command has ended, and only its last output is left to write.

    Python puts the system's own handling in place while it ends, so that a Ctrl-C then would end the process as by a
    signal, whatever its command's status.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextlib.contextmanager
def ended() -> Iterator[None]:
    """Inside, a command runs to its SystemExit; the process ends with it at once where a thread hangs."""
    try:
        yield
    except SystemExit as end:
        if not _hangs:
            raise
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or never there
                stream.flush()
        os._exit(end.code if isinstance(end.code, int) else int(end.code is not None))
