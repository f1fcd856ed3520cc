"""Names of files that commands write, so that none of a user's files is lost.

A file that the command names itself gets a free name; one that the user names must not be there.
"""

from pathlib import Path

from pcpo_ray.errors import RunError


def free(path: Path) -> Path:
    """Return the path, or where that is there the first of path-2, path-3 and so on that is not."""
    found, number = path, 1
    while found.exists():
        number += 1
        found = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return found


def check_free(path: Path) -> None:
    """Refuse a file that is there already. Raises RunError, which names a free one."""
    if path.exists():
        raise taken(path)


def taken(path: Path, how: str = "") -> RunError:
    """Make the error of a file that is there already; `how` says more on it."""
    return RunError(f"{path} is there already{how}; give another name, such as {free(path)}, or delete it")
