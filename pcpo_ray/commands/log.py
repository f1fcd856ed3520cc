"""Lines of a command that goes on for long: bare on a terminal, stamped with time and level elsewhere, or JSON."""

import contextlib
import io
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any, Literal, get_args

from pcpo_ray.errors import ConfigError
from pcpo_ray.runs.lines import plain

Level = Literal["debug", "info", "warning", "error"]
LEVELS: tuple[Level, ...] = get_args(Level)

Form = Literal["bare", "stamped", "json"]

WARNINGS = ("warning: ", "fault: ", "ALARM ", "scores are missing")
"""The beginnings of lines that are warnings; `training.dispatcher.trouble` and the evaluator make them."""

ESCAPES = re.compile(r"\x1b(\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|[@-Z\\^_])")
"""Codes that colour a terminal or move its cursor."""


def level_of(line: str) -> Level:
    """Tell the level of a line that was said without one."""
    return "warning" if line.startswith(WARNINGS) else "info"


def checked_level(text: str) -> Level:
    """Return the level that --log-level names. Raises ConfigError."""
    for level in LEVELS:
        if text.lower() == level:
            return level
    raise ConfigError(f"got --log-level {text!r}; expected one of {', '.join(LEVELS)}")


class Log:
    """A writer of lines at least as grave as `level`. `put` prints a text."""

    def __init__(self, put: Callable[[str], None], *, level: Level = "info", form: Form = "bare") -> None:
        self.put, self.form = put, form
        self.least = LEVELS.index(level)
        self.lock = threading.RLock()
        self.wrote = time.monotonic()
        """The time of the last line."""

    def write(self, text: str, level: Level = "info", **details: Any) -> None:
        """Write a text, a line for each of its lines; as JSON, one object with the text and the details."""
        if LEVELS.index(level) < self.least:
            return
        with self.lock:
            self.wrote = time.monotonic()
            for line in self._lines(text, level, details):
                self.put(line)

    def _lines(self, text: str, level: Level, details: Mapping[str, Any]) -> list[str]:
        if self.form == "bare":
            return [text]
        now = datetime.now().astimezone()
        if self.form == "json":
            head = {"time": now.isoformat(timespec="milliseconds"), "level": level, "message": text}
            return [json.dumps(plain({**head, **details}), allow_nan=False)]
        stamp = f"{now:%Y-%m-%d %H:%M:%S} {level.upper():<7} "
        text = text.removeprefix("warning: ")  # the level says it
        return [f"{stamp}{line}" for line in text.splitlines() or [""]]


class Prints(io.TextIOBase):
    """Stands in for standard output or error, and passes what others print to a log, a line at a time.

    Ray's messages and a reward's own `print` come in this way; colours and cursor movements are taken out.
    """

    def __init__(self, under: Any, write: Callable[[str], None]) -> None:
        self.under, self._write = under, write
        self.begun = ""
        self.lock = threading.RLock()

    @property
    def encoding(self) -> str:  # type: ignore[override]  # typeshed has an attribute
        return str(getattr(self.under, "encoding", None) or "utf-8")

    @property
    def errors(self) -> str:  # type: ignore[override]
        return str(getattr(self.under, "errors", None) or "backslashreplace")

    def write(self, text: str) -> int:
        with self.lock:
            *whole, self.begun = (self.begun + text).split("\n")
        for line in whole:
            self._pass(line)
        return len(text)

    def flush(self) -> None:
        """Do nothing: a line that is begun waits for its end."""

    def finish(self) -> None:
        """Pass on a line that was begun and has no end."""
        with self.lock:
            line, self.begun = self.begun, ""
        if line:
            self._pass(line)

    def _pass(self, line: str) -> None:
        # a bar that is redrawn comes as one line with carriage returns; what it shows last is enough
        shown = ESCAPES.sub("", line).rstrip("\r").rpartition("\r")[2].rstrip()
        if shown:
            self._write(shown)

    def fileno(self) -> int:
        return int(self.under.fileno())

    def isatty(self) -> bool:
        return False

    def writable(self) -> bool:
        return True


@contextlib.contextmanager
def prints_in(log: Log) -> Iterator[None]:
    """Inside, whatever is printed becomes lines of the log: they cannot break a display, nor stand there unstamped."""
    before: tuple[Any, Any] = sys.stdout, sys.stderr

    def write(line: str) -> None:
        with contextlib.suppress(Exception):  # a line that cannot be shown is no error of whoever prints it
            log.write(line, source="print")

    streams = [Prints(stream, write) for stream in before]
    sys.stdout, sys.stderr = streams  # type: ignore[assignment]
    try:
        yield
    finally:
        for name, mine, stream in zip(("stdout", "stderr"), streams, before, strict=True):
            if getattr(sys, name) is mine:
                setattr(sys, name, stream)
            mine.finish()
