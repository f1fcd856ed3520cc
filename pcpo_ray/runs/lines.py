"""JSON lines, as a run records them: metrics.jsonl, events.jsonl.

The lines are standard JSON, so NaN and infinities are written as null; null in metrics.jsonl is read back as NaN. A
line ends at its newline: text after the last newline was cut short by a kill, and is ignored.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def plain(value: Any) -> Any:
    """Return the value as JSON can hold it, with null for numbers that are not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return value


def text(value: Any) -> str:
    """Return the value as one line of JSON."""
    return json.dumps(plain(value), allow_nan=False)


def shown(value: float | None, form: str = ".4g") -> str:
    """Format a number for users, a missing one as a dash."""
    return "-" if value is None or not math.isfinite(value) else f"{value:{form}}"


def counted(count: int, noun: str) -> str:
    """Write a count with its noun: 1 step, 2 steps."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


@dataclass(frozen=True)
class Read:
    """The lines of a file, and the numbers (from 1) of lines that cannot be read, as after a power cut."""

    path: Path
    rows: list[dict[str, Any]]
    damaged: list[int]

    def __str__(self) -> str:
        """Describe the damage to the file; empty if there is none."""
        if not self.damaged:
            return ""
        shown = ", ".join(map(str, self.damaged[:10])) + (", ..." if len(self.damaged) > 10 else "")
        lines = "line" if len(self.damaged) == 1 else "lines"
        return f"{self.path}, {lines} {shown}: not what a run records, as a power cut or a full disk may leave it"


def metrics(path: Path) -> Read:
    """Read a metrics.jsonl, with NaN for null."""
    return _read(path, ("kind", "step", "time"), of_null=_with_nan)


def events(path: Path) -> Read:
    """Read an events.jsonl."""
    return _read(path, ("kind", "time"), of_null=lambda row: row)


def _read(path: Path, keys: tuple[str, ...], of_null: Callable[[Any], Any]) -> Read:
    rows, damaged = [], []
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            row = json.loads(line.decode("utf-8"))  # as text: of bytes, json takes NULs for UTF-16
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict) and all(key in row for key in keys):
            rows.append(of_null(row) if b"null" in line else row)
        else:
            damaged.append(number)
    return Read(path, rows, damaged)


def _with_nan(value: Any) -> Any:
    if value is None:
        return math.nan
    if isinstance(value, dict):
        return {key: _with_nan(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_with_nan(one) for one in value]
    return value
