"""A look at runs from outside, within a second: which there are, and how each one is, from what its folder holds.

A run's driver keeps status.json beside its records: its state, step and workers, every few seconds. The lock of the
run's writer (writer.py) tells whether that process still lives. Nothing heavy is imported here.
"""

import contextlib
import difflib
import json
import math
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pcpo_ray.data.requests import ENDED
from pcpo_ray.errors import RunError
from pcpo_ray.runs import ends, lines, writer
from pcpo_ray.runs.names import step_of
from pcpo_ray.runs.urls import child, is_url, shown

CONFIG, STATUS = "config.yaml", "status.json"
RUNS = "runs"
"""The folder where runs are, unless --runs names another."""

SILENT = 120.0
"""Seconds without a word after which a run on another machine is not known to go on."""

CHECKPOINTS = "checkpoints"
TRACES = (writer.WRITER, STATUS, "inputs.json", "metrics.jsonl", "events.jsonl", CHECKPOINTS)
"""Files that a run keeps beside its config; each run has one of them. A config.yaml alone may be any program's."""

PARTS = (CONFIG, *TRACES, "report.html", "images", "scores.parquet", "evaluations.parquet")
"""Names of the files and folders in a run's folder."""

DEPTH = 3
"""Folders between a run's folder and the deepest of its files, in checkpoints/step-000010/, and that file itself."""

BEGIN = "begin one: pcpo-ray train shapes_pcpo --local"

NONE = "none"
"""The state of a run that is not there."""


# -- which runs there are -------------------------------------------------------------------------------------------


def is_run(folder: Path) -> bool:
    """Return whether a folder is a run's."""
    return (folder / CONFIG).is_file() and any((folder / name).exists() for name in TRACES)


def place_of(text: str, runs: str = RUNS) -> str:
    """Return the place of the run that a user names: by a folder, by a URL, or by its name below `runs`.

    Raises RunError for what is a part of a run, such as its report or a checkpoint.
    """
    check_whole(text)
    if is_url(text):
        return text
    path = Path(text).expanduser()
    if is_run(path) or "/" in text.rstrip("/"):
        return str(path)
    if is_url(runs):
        return child(runs, text)
    below = Path(runs).expanduser() / text
    return str(below) if is_run(below) or runs != RUNS else str(path)


def check_whole(text: str) -> None:
    """Refuse a file or folder that is a part of a run, where the run's folder is asked for. Raises RunError."""
    if is_url(text):
        above, _, last = shown(text).rstrip("/").rpartition("/")
        higher, _, middle = above.rpartition("/")
        run = above if last in PARTS else higher if middle == CHECKPOINTS else None
    else:
        path = Path(text).expanduser()
        inside = path.exists() and not is_run(path)
        run = next((str(folder) for folder in path.parents[:DEPTH] if is_run(folder)), None) if inside else None
    if run is not None:
        raise RunError(f"{shown(text) if is_url(text) else text} is a part of a run; give the run's folder: {run}")


def name_of(text: str) -> str:
    """Return the name of the run that a user names by its name, its folder or its URL."""
    path = shown(text) if is_url(text) else text
    return path.rstrip("/").rpartition("/")[2] or text


def is_cut_short(folder: Path) -> bool:
    """Return whether a folder holds only what a start leaves that was killed before there was a run."""
    with contextlib.suppress(OSError):
        names = {path.name for path in folder.iterdir()}
        there = {name for name in names if not name.endswith(".unfinished")}
        return writer.LOCK in there and there <= {writer.LOCK, writer.WRITER, "inputs.json"}
    return False


def names_in(folder: Path) -> list[str]:
    """List the runs in a folder by name."""
    return sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}") if is_run(path.parent))


def no_run(place: str) -> RunError:
    """Make the error of a run that is not there; it names the run that may have been meant, or those there are."""
    folder = Path(place)
    if inside := names_in(folder):
        return RunError(
            f"there is no run at {place}, which holds runs: {_listed(inside)}; name one of them, such as "
            f"{folder / inside[0]}"
        )
    parents = {parent.absolute(): parent for parent in (Path(RUNS), folder.parent)}
    there = [str(parent / name) for parent in parents.values() for name in names_in(parent)]
    by_name = {path.rpartition("/")[2]: path for path in reversed(there)}
    close = difflib.get_close_matches(folder.name, list(by_name), n=1)
    guess = f" (did you mean {by_name[close[0]]}?)" if close else ""
    others = f"there are {_listed(there)}" if there else f"there are none; {BEGIN}"
    return RunError(f"there is no run at {place}{guess}; {others}")


def there(text: str) -> str:
    """Return the words by which a user names a run that is there, before anything is loaded. Raises RunError.

    A URL is left to those who read it.
    """
    place = place_of(text)
    if not is_url(place) and not (Path(place) / CONFIG).is_file():
        raise no_run(place)
    return text


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(names[:10]) + more


def check_start(runs: str, name: str, *, resume: bool) -> None:
    """Check that a folder is free for a new run, or has one to resume, before anything is loaded. Raises RunError.

    A URL is left to those who write there.
    """
    if is_url(runs):
        return
    folder = Path(runs).expanduser() / name
    if resume and not is_run(folder):
        raise nothing_to_resume(folder)
    if not resume and folder.exists() and not is_cut_short(folder):
        raise exists(folder)


def exists(folder: Path) -> RunError:
    """Make the error of a new run's folder that is there already."""
    return RunError(
        f"the run folder {folder} exists; continue it with --resume (in Python resume=True), give another name=..., "
        "or delete it"
    )


def nothing_to_resume(folder: Path) -> RunError:
    """Make the error of a run that is to be continued and is not there."""
    return RunError(f"there is no run at {folder} to resume; leave out --resume (in Python resume=True) to start it")


# -- how a run is ---------------------------------------------------------------------------------------------------


def look(place: str, now: float | None = None) -> dict[str, Any] | None:
    """Return how the run at a path or URL is, as `RunStatus.row` with `place` and `again`; None where there is none.

    `again` is the command that continues it; `age` the seconds since the run was last heard of; `alive` is True where
    its process is known to live. A run whose process is
    gone without a word has failed, and one of another machine that is silent is `lost`. Raises RunError for storage
    that does not answer.
    """
    at = time.time() if now is None else now
    return _stored(place, at) if is_url(place) else _local(Path(place), at)


def with_events(folder: Path) -> dict[str, Any]:
    """Return how the run in a folder is, as `look` does, with all of its `events`."""
    return {**(_local(folder, time.time()) or {"state": NONE}), "events": lines.events(folder / "events.jsonl").rows}


def looks(runs: str = RUNS) -> list[dict[str, Any]]:
    """Look at every run in a folder, the one heard of last first."""
    now = time.time()
    folder = Path(runs).expanduser()
    found = [_local(folder / name, now) for name in names_in(folder)]
    return sorted((row for row in found if row is not None), key=lambda row: float(row["age"]))


def _local(folder: Path, now: float) -> dict[str, Any] | None:
    if not is_run(folder):
        return None
    try:
        return _read(folder, now)
    except (TypeError, ValueError, KeyError, AttributeError, OSError) as error:  # not as runs write them
        unread = f"its records cannot be read: {type(error).__name__}: {error}"
        age = max(0.0, now - _changed(folder / CONFIG))
        return {"run": folder.name, "state": "failed", "step": 0, "steps": 0, "error": unread, "again": "",
                "age": age, "place": str(folder)}  # fmt: skip


def _read(folder: Path, now: float) -> dict[str, Any]:
    kept = _kept(folder)
    begun = {"run": folder.name, "step": 0, "steps": 0, **_of_config((folder / CONFIG).read_bytes())}
    recorded = begun | ends.recorded(folder)
    if recorded["step"] > kept.get("step", 0):  # the status is seconds old, and a killed process writes no later one
        kept = {name: value for name, value in kept.items() if name not in recorded}
    row: dict[str, Any] = {**recorded, **kept, "place": str(folder)}
    heard = max(kept.get("time", 0.0), *(_changed(folder / name) for name in (CONFIG, "metrics.jsonl", "events.jsonl")))
    row["age"] = max(0.0, now - heard)
    row["again"] = kept.get("again") or again(folder)
    end = ends.ending(folder)
    alive = writer.held(folder)
    token = writer.read(folder)
    if alive:
        row["alive"] = True
        row["state"] = kept.get("state", "training" if row["step"] else "starting")
    elif end is not None:
        row |= end
    elif kept.get("state") in ENDED:
        pass
    elif token is None or token.here or (alive is None and row["age"] > SILENT):
        who = f"its process ({token.pid} on {token.host})" if token is not None else "its process"
        row |= {"state": "failed", "error": f"{who} ended without a last word: killed, or its machine went down"}
    elif row["age"] > SILENT:
        row |= {"state": "lost", "error": f"{token.host} was not heard of since; it was killed, or cannot write here"}
    row.setdefault("state", "starting")
    row["checkpoint"] = _newest(folder) or row.get("checkpoint")
    return row


def _stored(url: str, now: float) -> dict[str, Any] | None:
    from pcpo_ray.runs.storage import Storage

    storage = Storage(url)
    text = storage.read(STATUS)
    if text is None:
        config = storage.read(CONFIG)
        if config is None:
            return None
        begun = {"run": url.rstrip("/").rpartition("/")[2], "step": 0, "steps": 0, **_of_config(config)}
        row: dict[str, Any] = {**begun, "state": "starting", "age": math.nan}
    else:
        row = json.loads(text)
        row["age"] = max(0.0, now - row.get("time", now))
    return {**row, "place": shown(url), "again": row.get("again", ""), "stored": True}


def _kept(folder: Path) -> dict[str, Any]:
    """Return what a run's status.json says, without places if the folder was moved or copied since."""
    found = _json(folder / STATUS)
    if (home := found.get("folder")) and Path(home).resolve() != folder.resolve():
        return {name: value for name, value in found.items() if name not in ("again", "checkpoint")}
    return found


def continuing(folder: Path) -> str:
    """Return the command that continues the run in a folder: as it was started, if its status.json says how."""
    return _kept(folder).get("again") or again(folder)


def again(folder: Path) -> str:
    """Return a command that continues the run in a folder."""
    runs = [] if str(folder.parent) == RUNS else ["--runs", str(folder.parent)]
    return shlex.join(["pcpo-ray", "train", str(folder / CONFIG), *runs, "--resume"])


def _of_config(text: str | bytes) -> dict[str, Any]:
    try:
        data = yaml.safe_load(text)
        return {"run": str(data["name"]), "step": 0, "steps": int(data["steps"])}
    except (yaml.YAMLError, KeyError, TypeError, ValueError):
        return {}


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _newest(folder: Path) -> str | None:
    there = (path.parent for path in (folder / "checkpoints").glob("step-*/state.json"))
    whole = {step: path for path in there if (step := step_of(path.name)) is not None}
    return str(whole[max(whole)]) if whole else None


def kept(status: Mapping[str, Any], again: str) -> dict[str, Any]:
    """Return what status.json keeps of a status: all but the events, which have a file of their own."""
    return {**{name: value for name, value in status.items() if name != "events"}, "again": again, "time": time.time()}
