"""The ends of a run's records, read within a second: its last step and evaluation, and how it ended.

They tell of a run that keeps no status, or that was killed after the last one.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 1 << 18
"""Bytes that are read from either end of a file of records."""


def recorded(folder: Path) -> dict[str, Any]:
    """Return the last step and the last evaluation in a status's words; without those that there are none of yet."""
    row: dict[str, Any] = {}
    for line in _lines(folder / "metrics.jsonl"):
        if line.get("kind") == "train":
            row.setdefault("first_reward", line.get("reward_mean"))
            row |= {"step": line["step"], "reward": line.get("reward_mean"), "reward_std": line.get("reward_std")}
            row["seconds"] = line.get("seconds")
        elif line.get("kind") == "evaluation":
            row["evaluated"] = {name: value.get("mean") for name, value in line.get("rewards", {}).items()}
            row["evaluated_step"] = line["step"]
            row["change"] = (line.get("changes") or {}).get("reward")
    return row


def ending(folder: Path) -> dict[str, Any] | None:
    """Return the state and error that the newest event of an ending tells, None where the run was begun again."""
    found = None
    for event in _lines(folder / "events.jsonl"):
        match event.get("kind"):
            case "started":
                found = None
            case "finished":
                found = {"state": "finished", "error": ""}
            case "stopped" | "rolled_back":
                found = {"state": "stopped", "error": event.get("alarm", "")}
            case "ending" | "failed":
                found = {"state": "failed", "error": event.get("error", "")}
    return found


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the whole lines in the first and the last BLOCK of a file of JSON lines."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            head = file.read(BLOCK)
            tail = b""
            if size > BLOCK:
                file.seek(max(BLOCK, size - BLOCK))
                tail = file.read()
    except OSError:
        return
    first = head.split(b"\n")[:-1]
    last = tail.split(b"\n")[1:-1]
    for line in (*first, *last):
        with contextlib.suppress(ValueError):
            found = json.loads(line)
            if isinstance(found, dict):
                yield found
