"""What goes along with a submitted job: the working folder as one zip, without what no run needs."""

import dataclasses
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pathspec import PathSpec

from pcpo_ray import config
from pcpo_ray.errors import ConfigError

LIMIT = 100 * 2**20
"""Bytes that Ray's dashboard takes."""

IGNORES = (".gitignore", ".rayignore")
LEFT_OUT = (
    ".git",
    ".venv/",
    "venv/",
    "node_modules/",
    "__pycache__/",
    "*.pyc",
    "*.egg-info/",
    ".mypy_cache/",
    ".ruff_cache/",
    ".pytest_cache/",
    ".hypothesis/",
    "/runs/",
    "**/checkpoints/step-*/",
)
"""Patterns as in .gitignore."""

OUTSIDE = ".submitted"
"""Where in the package a config lies that lay outside of the working folder."""

DATE = (1980, 1, 1, 0, 0, 0)
"""Of every file in the package: the same files are the same package, which is not sent twice."""


def pack(folder: Path, path: Path, run: config.Run, into: Path) -> str:
    """Write the zip `into` of a working folder, with the config file at `path`; the config's name in the package.

    Raises ConfigError where it is too large, or where what the config names is in the folder but left out.
    """
    folder, path = folder.resolve(), path.resolve()
    inside = path.is_relative_to(folder)
    name = path.relative_to(folder).as_posix() if inside else f"{OUTSIDE}/{path.name}"
    sources = {found: folder / found for found in files(folder)} | {name: path}
    for named in _named(dataclasses.asdict(run)):
        _check_there(folder, named, set(sources))
    sizes = {found: source.stat().st_size for found, source in sources.items()}
    if sum(sizes.values()) > LIMIT:
        largest = sorted(sizes, key=lambda found: -sizes[found])[:5]
        raise ConfigError(
            f"{folder} is too large to go along with a job: {sum(sizes.values()) / 2**20:.0f} MiB, and Ray takes "
            f"{LIMIT / 2**20:.0f}; largest are {[f'{found} ({sizes[found] / 2**20:.1f} MiB)' for found in largest]}; "
            "name in .gitignore or .rayignore what the run does not need, or submit from another folder"
        )
    with zipfile.ZipFile(into, "w", zipfile.ZIP_DEFLATED) as package:
        for found, source in sorted(sources.items()):
            info = zipfile.ZipInfo(found, DATE)
            info.external_attr = (source.stat().st_mode & 0xFFFF) << 16
            package.writestr(info, source.read_bytes(), zipfile.ZIP_DEFLATED)
    return name


def files(folder: Path) -> list[str]:
    """The files that go along, relative to the folder: no link to a folder is followed."""
    found = []
    specs: dict[Path, PathSpec] = {}
    for here, folders, names in os.walk(folder):
        place = Path(here)
        lines = [*LEFT_OUT] if place == folder else []
        for ignore in IGNORES:
            if (place / ignore).is_file():
                lines += (place / ignore).read_text(encoding="utf-8").splitlines()
        if lines:
            specs[place] = PathSpec.from_lines("gitignore", lines)
        within = [(root, spec) for root, spec in specs.items() if place.is_relative_to(root)]

        def kept(path: Path, end: str, within: list[tuple[Path, PathSpec]] = within) -> bool:
            return not any(spec.match_file(path.relative_to(root).as_posix() + end) for root, spec in within)

        folders[:] = sorted(name for name in folders if kept(place / name, "/"))
        found += [
            (place / name).relative_to(folder).as_posix()
            for name in names
            if kept(place / name, "") and (place / name).is_file()
        ]
    return sorted(found)


def _named(value: Any) -> Iterator[str]:
    """Every text in a config that may be a path or a class."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key not in ("name", "kind") or ":" in str(item):
                yield from _named(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _named(item)
    elif isinstance(value, str) and value:
        yield value


def _check_there(folder: Path, named: str, packed: set[str]) -> None:
    """Raises ConfigError for a file, folder or module of the working folder that would not be there in the job."""
    module, colon, _ = named.partition(":")
    path = Path(module.replace(".", "/")) if colon else Path(named)
    for candidate in (path.with_suffix(".py"), path) if colon else (path,):
        if candidate.is_absolute() or not (folder / candidate).exists() or candidate == Path("."):
            continue
        within = candidate.as_posix()
        if not any(found == within or found.startswith(within + "/") for found in packed):
            raise ConfigError(
                f"the config names {named!r}, which does not go along with the job ({', '.join(IGNORES)}, a link or "
                f"one of {list(LEFT_OUT)} leaves it out); put it elsewhere, or give a path that the cluster sees"
            )
