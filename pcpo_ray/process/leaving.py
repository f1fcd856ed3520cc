"""The end of a command's process in which a thread of a library hangs: Python's own end would wait, or crash there."""

import contextlib
import os
import sys
from collections.abc import Iterator

_hangs = False


def hangs() -> None:
    """Declare that a thread hangs which nothing can end."""
    global _hangs
    _hangs = True


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
