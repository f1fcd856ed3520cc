"""Checkpoints in object storage. One is whole if its state.json, written last, and all files that names are there."""

import json
from collections.abc import Mapping
from pathlib import Path

from pcpo_ray.runs import checkpoints
from pcpo_ray.runs.folder import Say
from pcpo_ray.runs.names import step_of
from pcpo_ray.runs.storage import Storage

CHECKPOINTS = "checkpoints"


def below(step: int) -> str:
    """Return the name of a step's checkpoint below the run's URL."""
    return checkpoints.folder_for(Path(), step).as_posix()


def state(storage: Storage, step: int) -> bytes | None:
    """Return a checkpoint's state.json, None where there is none."""
    return storage.read(f"{below(step)}/{checkpoints.STATE}")


def steps(storage: Storage) -> list[int]:
    """List the steps whose checkpoint has its state.json, oldest first."""
    return _ended(set(storage.names(CHECKPOINTS)))


def newest(storage: Storage, place: str, say: Say) -> int | None:
    """Return the step of the newest whole checkpoint; `say` gets a line for each newer one that is not."""
    names = set(storage.names(CHECKPOINTS))
    for step in reversed(_begun(names)):
        found = state(storage, step)
        try:
            needed = None if found is None else json.loads(found)["files"]
        except (ValueError, KeyError, TypeError):
            needed = None
        if needed is not None and all(f"{below(step)}/{file}" in names for file in needed):
            return step
        say(f"checkpoint {place}/{below(step)} is not whole: its upload was cut short; falling back to an older one")
    return None


def holds(storage: Storage, step: int, files: Mapping[str, Path], own: bytes) -> bool:
    """Return whether a checkpoint with these files and this state.json, which has their checksums, is there whole."""
    return state(storage, step) == own and files.keys() <= set(storage.names(CHECKPOINTS))


def prune(storage: Storage, keep: int, until: int, spared: int | None) -> None:
    """Delete the checkpoints up to a step but the newest `keep` whole ones and that of step `spared`."""
    names = set(storage.names(CHECKPOINTS))
    kept = [step for step in _ended(names) if step <= until][-keep:]
    for step in _begun(names):
        if step <= until and step not in kept and step != spared:
            delete(storage, step)


def delete(storage: Storage, step: int) -> None:
    """Delete a checkpoint, state.json first, so that a partly deleted one is not whole."""
    storage.delete([f"{below(step)}/{checkpoints.STATE}"])
    storage.delete_folder(below(step))


def _ended(names: set[str]) -> list[int]:
    """List the steps of which state.json is stored, oldest first."""
    return [step for step in _begun(names) if f"{below(step)}/{checkpoints.STATE}" in names]


def _begun(names: set[str]) -> list[int]:
    """List the steps of which anything is stored, oldest first."""
    parts = [name.split("/") for name in names]
    found = {step_of(words[1]) for words in parts if len(words) > 2}
    return sorted(step for step in found if step is not None)
