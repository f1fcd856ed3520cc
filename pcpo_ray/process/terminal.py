"""Output that never holds up or ends a command, whether the terminal is closed, slow, full or ASCII only.

Inside `buffered_output`, sys.stdout and sys.stderr hand their text to a thread that writes it. If it cannot keep up,
text is left out and counted; if nobody reads any more, it is thrown away.
"""

import contextlib
import errno
import io
import os
import queue
import select
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, TextIO

from pcpo_ray.errors import RunError

WAITING = 1000
"""Writes that may wait for the terminal, each a line or a redrawing of the live table."""

LAST = 5.0
"""Seconds that a command waits at its end for the terminal to take what is left."""

GONE = (errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO)
"""Errors of writing to a pipe or terminal that nobody reads any more."""

LEFT_OUT = "({} lines were left out, as the terminal did not take them)\n"


class Stream(io.TextIOBase):
    """Stands in the place of a text stream. While `heeded`, its writer waits for the reader, and ends with it."""

    def __init__(self, under: TextIO) -> None:
        self.under = under
        self.number = _descriptor(under)
        self.heeded = False
        self.gone = False
        self.left_out = 0
        self.begun = ""
        self.lock = threading.RLock()  # as the queue's: a signal's handler may print in the midst of a line
        self.waiting: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._write_all, name="terminal", daemon=True)
        self.thread.start()

    @property
    def encoding(self) -> str:  # type: ignore[override]  # typeshed has an attribute
        return getattr(self.under, "encoding", None) or "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]
        return "backslashreplace"

    def write(self, text: str) -> int:
        if self.heeded:
            self._put_heeded(text)
            return len(text)
        with self.lock:
            self.begun += text
            if text.endswith("\n"):
                self.flush()
        return len(text)

    def flush(self) -> None:
        """Hand over what there is of a line."""
        with self.lock:
            text, self.begun = self.begun, ""
            if self.waiting.qsize() >= WAITING or self.gone:
                self.left_out += text.count("\n")
            elif text:
                self.waiting.put(text)

    def fileno(self) -> int:
        return self.under.fileno()

    def isatty(self) -> bool:
        return not self.under.closed and self.under.isatty()

    def writable(self) -> bool:
        return True

    def finish(self, deadline: float) -> None:
        """Have all written that the terminal takes until then."""
        self.flush()
        self.waiting.put(None)
        self.thread.join(max(0.0, deadline - time.monotonic()))

    def _write_all(self) -> None:
        while True:
            text = self.waiting.get()
            left_out, self.left_out = self.left_out, 0
            try:
                if left_out and not self.gone:
                    self._put(LEFT_OUT.format(left_out))
                if text is None:
                    return
                self._put(text)
            except OSError as error:
                self.gone = self.gone or error.errno in GONE
                if text is None:
                    return
                self.left_out += left_out + text.count("\n")

    def _put_heeded(self, text: str) -> None:
        try:
            self._put(text)
        except OSError as error:
            if error.errno in GONE:  # typer ends a command for it without a word
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from None
            raise RunError(f"what is to be printed cannot be written: {error.strerror}") from error

    def _put(self, text: str) -> None:
        if self.number is None:
            self.under.write(text)
            self.under.flush()
            return
        left = memoryview(text.encode(self.encoding, self.errors))
        while left:
            try:
                left = left[os.write(self.number, left) :]
            except BlockingIOError:  # somebody who shares the terminal has set it so
                select.select([], [self.number], [], 1.0)


def _descriptor(stream: TextIO) -> int | None:
    try:
        stream.flush()
        return stream.fileno()
    except (OSError, ValueError, AttributeError):
        return None


def _opened() -> None:
    """Give a process that was started without standard streams (`>&-`) ones that go nowhere.

    A file that the process opens later would take their numbers, and get what is printed.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            taken = os.open(os.devnull, os.O_RDWR)
            if taken != number:
                os.dup2(taken, number)
                os.close(taken)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))  # noqa: SIM115


_streams: list[Stream] = []


@contextlib.contextmanager
def buffered_output() -> Iterator[None]:
    """Inside, nothing that is printed raises, nor waits for who reads it."""
    _opened()
    before: list[Any] = [sys.stdout, sys.stderr]
    streams = [Stream(stream) for stream in before]
    _streams.extend(streams)
    sys.stdout, sys.stderr = streams  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        deadline = time.monotonic() + LAST
        for stream in streams:
            stream.finish(deadline)
            _streams.remove(stream)


def joined() -> bool:
    """Return whether standard output and error go to one place, as with 2>&1: what is told on one is read on both."""
    if len(_streams) < 2 or any(stream.number is None for stream in _streams[-2:]):
        return False
    try:
        return os.path.samestat(*(os.fstat(stream.fileno()) for stream in _streams[-2:]))
    except OSError:  # closed
        return False


def heed() -> None:
    """Make a command that only shows something wait for its reader, and end when the reader does."""
    for stream in _streams:
        stream.heeded = True
