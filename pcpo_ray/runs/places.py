"""The folder of a run, picked by what the user gave: a path or a URL."""

from pathlib import Path

from pcpo_ray.runs import look
from pcpo_ray.runs.folder import LocalFolder, RunFolder
from pcpo_ray.runs.stored import StoredFolder
from pcpo_ray.runs.urls import child, is_url


def folder_at(place: str) -> RunFolder:
    """Return the folder of the run at a path or URL, or of a name below runs/. Raises RunError for a malformed URL."""
    found = look.place_of(place)
    return StoredFolder.at(found) if is_url(found) else LocalFolder(local=Path(found))


def folder_below(runs: str, name: str) -> RunFolder:
    """Return the folder of the run `name` below what --runs says. Raises RunError for a malformed URL."""
    return folder_at(child(runs, name)) if is_url(runs) else LocalFolder(local=Path(runs).expanduser() / name)
