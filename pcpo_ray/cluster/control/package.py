"""The package of a submitted job: its working folder as a zip, without files that no run needs or that look secret."""

import contextlib
import dataclasses
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pathspec import PathSpec

from pcpo_ray import config
from pcpo_ray.cluster.control.secrets import holds_secret, is_secret, looks_secret
from pcpo_ray.errors import ConfigError
from pcpo_ray.runs.lines import counted

LIMIT = 100 * 2**20
"""Largest package that Ray's dashboard accepts, in bytes."""

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
    ".tox/",
    ".nox/",
    ".ipynb_checkpoints/",
    ".DS_Store",
    "/runs/",
    "**/checkpoints/step-*/",
)
"""Patterns as in .gitignore."""

SHOWN = 3
"""Largest files that are named; thrice as many of those left out."""

OUTSIDE = ".submitted"
"""Folder in the package for a config from outside the working folder."""

DATE = (1980, 1, 1, 0, 0, 0)
"""Date of every file in the package: equal files make an equal package, which is not sent twice."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The files of a folder that are packed, and what is left out; names are relative to the folder."""

    files: Sequence[str] = field(default_factory=list)
    secrets: Mapping[str, bool] = field(default_factory=dict)
    """Files that look like secrets; true for those that hold one, whatever they are called."""
    links: Mapping[str, str] = field(default_factory=dict)
    """Links that are left out, with their targets."""


@dataclass(frozen=True, kw_only=True)
class JobPackage:
    """A job's package: the config's name in it, the bytes of each file, and the selection it was made from."""

    name: str
    sizes: Mapping[str, int]
    selected: Selection

    def lines(self) -> list[str]:
        """Describe what leaves this machine, and what does not."""
        total = sum(self.sizes.values())
        files = f"{counted(len(self.sizes), 'file')}, {total / 2**20:.1f} MiB"
        lines = [f"goes along: {files}; largest are {_largest(self.sizes)}"]
        if self.selected.secrets:
            secrets = [
                f"{name} (holds a key or a token)" if held else name for name, held in self.selected.secrets.items()
            ]
            lines.append(
                f"stays, as it looks like a secret: {_some(secrets)}; --include-secret PATH takes a file "
                "along all the same"
            )
        if self.selected.links:
            links = [f"{name} -> {target}" for name, target in self.selected.links.items()]
            lines.append(f"stays, as it is a link to a folder, or leads out of this one: {_some(links)}")
        return lines


def check_words(overrides: Sequence[str]) -> None:
    """Refuse an override that holds a key or a token, as it would stand in the job's log. Raises ConfigError."""
    if held := [word.partition("=")[0] for word in overrides if is_secret(word)]:
        raise ConfigError(
            f"{', '.join(held)} is given what looks like a key or a token, and whoever sees the cluster can read a "
            "job's command; keep it in an environment variable of the cluster's machines, which the reward reads"
        )


def pack(folder: Path, path: Path, run: config.Run, into: Path, *, include: Sequence[str] = ()) -> JobPackage:
    """Write the working folder to the zip `into`, with the config file at `path`.

    `include` names files to pack although they look like secrets. Raises ConfigError if one of them is no such file, if
    the package is too large, or if the config names something in the folder that is left out.
    """
    folder, path = folder.resolve(), path.resolve()
    with _packing(folder):
        return _pack(folder, path, run, into, include)


@contextlib.contextmanager
def _packing(folder: Path) -> Iterator[None]:
    """Turn a failure of the disk, as of a file that may not be read, into a ConfigError."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{error.filename or folder} cannot be packed for the job: {error.strerror or error}; fix that, or name "
            "the file in .rayignore"
        ) from error


def _pack(folder: Path, path: Path, run: config.Run, into: Path, include: Sequence[str]) -> JobPackage:
    inside = path.is_relative_to(folder)
    name = path.relative_to(folder).as_posix() if inside else f"{OUTSIDE}/{path.name}"
    given = [one for one in include if (folder / one).resolve() == path]
    if not given and holds_secret(path):
        raise ConfigError(
            f"{path} holds what looks like a key or a token, and whoever sees the cluster can read a job's config; "
            "keep it in an environment variable of the cluster's machines, or say --include-secret "
            f"{os.path.relpath(path, folder)}"
        )
    selected = find(folder, [one for one in include if one not in given])
    selected = dataclasses.replace(
        selected, secrets={one: held for one, held in selected.secrets.items() if one != name}
    )
    sources = {one: folder / one for one in selected.files} | {name: path}
    for named in _named(dataclasses.asdict(run)):
        _check_there(folder, named, set(sources), selected)
    sizes = {one: source.stat().st_size for one, source in sources.items()}
    if strange := [ascii(one) for one in sources if not _is_text(one)]:
        raise ConfigError(
            f"{folder} has files whose names are no UTF-8, which a zip cannot hold: {_some(strange)}; rename them, or "
            "name their folder in .rayignore"
        )
    if sum(sizes.values()) > LIMIT:
        raise ConfigError(
            f"{folder} is too large to go along with a job: {sum(sizes.values()) / 2**20:.0f} MiB, and Ray takes "
            f"{LIMIT / 2**20:.0f}; largest are {_largest(sizes)}; "
            "name in .gitignore or .rayignore what the run does not need; put a model on storage that all machines of "
            "the cluster share, and give its absolute path (model.path=/shared/models/...)"
        )
    with zipfile.ZipFile(into, "w", zipfile.ZIP_DEFLATED) as package:
        for one, source in sorted(sources.items()):
            info = zipfile.ZipInfo(one, DATE)
            info.external_attr = (source.stat().st_mode & 0xFFFF) << 16
            package.writestr(info, source.read_bytes(), zipfile.ZIP_DEFLATED)
    return JobPackage(name=name, sizes=sizes, selected=selected)


def _is_text(name: str) -> bool:
    """Return whether a file's name is UTF-8; Python keeps other bytes of it as lone surrogates."""
    return name.encode("utf-8", "replace").decode() == name


def _largest(sizes: Mapping[str, int]) -> str:
    names = sorted(sizes, key=lambda name: (-sizes[name], name))[:SHOWN]
    return ", ".join(f"{name} ({sizes[name] / 2**20:.1f} MiB)" for name in names)


def _some(names: Sequence[str]) -> str:
    more = [f"{len(names) - 3 * SHOWN} more"] if len(names) > 3 * SHOWN else []
    return ", ".join([*names[: 3 * SHOWN], *more])


def find(folder: Path, include: Sequence[str] = ()) -> Selection:
    """Select a folder's files to pack. Follows no link to a folder or out of it. Raises ConfigError."""
    files: list[str] = []
    secrets: dict[str, bool] = {}
    links: dict[str, str] = {}
    wanted = {Path(os.path.relpath(folder / one, folder)).as_posix() for one in include}
    for name in _kept(folder, links):
        path = folder / name
        target = path.resolve()
        if not target.is_relative_to(folder.resolve()):
            links[name] = os.readlink(path) if path.is_symlink() else str(target)
        elif name in wanted:
            files.append(name)
        elif looks_secret(name) or looks_secret(_within(target, folder)):
            secrets[name] = False
        elif holds_secret(path):
            secrets[name] = True
        else:
            files.append(name)
    if absent := sorted(wanted - set(files)):
        raise ConfigError(
            f"--include-secret names {absent}, which would not go along anyway: not a file below {folder}, a link that "
            f"leads out of it, or left out by {', '.join(IGNORES)}"
        )
    return Selection(files=sorted(files), secrets=dict(sorted(secrets.items())), links=links)


def _within(target: Path, folder: Path) -> str:
    return target.relative_to(folder.resolve()).as_posix()


def _kept(folder: Path, links: dict[str, str]) -> Iterator[str]:
    """Yield the files that no pattern ignores; adds links to folders to `links`."""
    specs: dict[Path, PathSpec] = {}
    for here, folders, names in os.walk(folder):
        place = Path(here)
        lines = [*LEFT_OUT] if place == folder else []
        for ignore in IGNORES:
            if (place / ignore).is_file():
                lines += (place / ignore).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        if lines:
            specs[place] = PathSpec.from_lines("gitignore", lines)
        within = [(root, spec) for root, spec in specs.items() if place.is_relative_to(root)]

        def kept(path: Path, end: str, within: list[tuple[Path, PathSpec]] = within) -> bool:
            return not any(spec.match_file(path.relative_to(root).as_posix() + end) for root, spec in within)

        folders[:] = sorted(name for name in folders if kept(place / name, "/") and not _is_environment(place / name))
        for name in folders:
            if (place / name).is_symlink():
                links[(place / name).relative_to(folder).as_posix()] = os.readlink(place / name)
        for name in names:
            if kept(place / name, "") and (place / name).is_file():
                yield (place / name).relative_to(folder).as_posix()


def _is_environment(folder: Path) -> bool:
    """Return whether a folder is a virtual environment, of venv or conda, whatever it is called."""
    return (folder / "pyvenv.cfg").is_file() or (folder / "conda-meta").is_dir()


def _named(value: Any) -> Iterator[str]:
    """Yield every text in a config that may be a path or a class."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key not in ("name", "kind") or ":" in str(item):
                yield from _named(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _named(item)
    elif isinstance(value, str) and value:
        yield value


def _check_there(folder: Path, named: str, packed: set[str], selected: Selection) -> None:
    """Check that a file, folder or module of the working folder will be in the job. Raises ConfigError."""
    module, colon, _ = named.partition(":")
    path = Path(module.replace(".", "/")) if colon else Path(named)
    for candidate in (path.with_suffix(".py"), path) if colon else (path,):
        if candidate.is_absolute() or not (folder / candidate).exists() or candidate == Path("."):
            continue
        within = candidate.as_posix()
        if secret := [one for one in selected.secrets if one == within or one.startswith(f"{within}/")]:
            raise ConfigError(
                f"the config names {named!r}, and {secret[0]} looks like a secret, which stays; say --include-secret "
                f"{secret[0]} if whoever sees the cluster may read it"
            )
        if not any(one == within or one.startswith(f"{within}/") for one in packed):
            raise ConfigError(
                f"the config names {named!r}, which does not go along with the job ({', '.join(IGNORES)}, a link or "
                f"one of {list(LEFT_OUT)} leaves it out, or it is in a virtual environment); put it on storage that "
                "all machines of the cluster share, and give its absolute path there"
            )
