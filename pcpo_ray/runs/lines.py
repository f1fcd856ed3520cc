"""JSON lines, as a run records them: metrics.jsonl, events.jsonl.

They are JSON for every reader, so a number that there is none of (NaN, an infinity) is written as null; read back from
metrics.jsonl, null is NaN. A line ends at its newline: what follows the last one was cut short by a kill, and is none.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def plain(value: Any) -> Any:
    """The value as JSON can say it: null for numbers that are not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return value


def text(value: Any) -> str:
    """The value as JSON, in one line."""
    return json.dumps(plain(value), allow_nan=False)


def shown(value: float | None, form: str = ".4g") -> str:
    """A number as a user reads it, a dash for none."""
    return "-" if value is None or not math.isfinite(value) else f"{value:{form}}"


@dataclass(frozen=True)
class Read:
    """A file's lines, and the numbers of those that cannot be read, counted from 1, as after a power cut."""

    path: Path
    rows: list[dict[str, Any]]
    damaged: list[int]

    def __str__(self) -> str:
        """What is wrong with the file; empty where nothing is."""
        if not self.damaged:
            return ""
        shown = ", ".join(map(str, self.damaged[:10])) + (", ..." if len(self.damaged) > 10 else "")
        lines = "line" if len(self.damaged) == 1 else "lines"
        return f"{self.path}, {lines} {shown}: not what a run records, as a power cut or a full disk may leave it"


def metrics(path: Path) -> Read:
    """The lines of a metrics.jsonl, NaN where they have null."""
    return _read(path, ("kind", "step", "time"), of_null=_with_nan)


def events(path: Path) -> Read:
    """The lines of an events.jsonl."""
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
