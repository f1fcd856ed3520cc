"""Upload of a driver's records into storage; each byte is sent a few times at most, however long the run.

- Files that only grow (metrics.jsonl, events.jsonl, TensorBoard's) go as parts, a folder of them in place of the file.
  A push sends what is new; FEW parts of about one size become one, so that there are never many.
- Files of one step each (DATASETS) go once.
- Others go whole when they have changed.

RECORDS, written last, lists the parts and other files that count; whatever an interrupted push or somebody else left
besides is ignored. It names its writer and is written conditionally, so a push that was under way when another process
took the run over does not count either: its parts, named by their content, lie beside those that do. MARK in the local
folder remembers what was sent.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from pcpo_ray.errors import RunError
from pcpo_ray.runs.disk import partial_path, replace, writing
from pcpo_ray.runs.names import step_of
from pcpo_ray.runs.storage import Storage
from pcpo_ray.runs.urls import is_plain

MARK, RECORDS = ".stored.json", ".records.json"
DATASETS = {"scores.parquet": ".parquet", "evaluations.parquet": ".parquet", "features": ".npy", "images": ""}
"""Folders with a file a step (of images a folder a step), and how its name ends."""

FIRST = ("config.yaml", "inputs.json")
"""Files that a run begins with."""

GROWING = (".jsonl", ".tfevents.")
PART = re.compile(r"\d{15}-\d{15}-[0-9a-f]{16}")
FEW, SMALL = 16, 1 << 16
"""Parts that are merged into one, and the bytes below which a part is of the smallest size class (the next: x FEW)."""


@dataclass(frozen=True)
class Part:
    """A range of bytes of a growing file, and their checksum."""

    start: int
    end: int
    sum: str

    def below(self, name: str) -> str:
        """Return the part's name in storage."""
        return f"{name}/{self.start:015d}-{self.end:015d}-{self.sum}"


@dataclass
class Sent:
    """The state of storage: parts by file, newest step by dataset, size and time of other files, names to delete."""

    parts: dict[str, list[Part]] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)
    others: dict[str, list[int]] = field(default_factory=dict)
    gone: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, local: Path) -> "Sent":
        try:
            found = json.loads((local / MARK).read_text(encoding="utf-8"))
            parts = {name: [Part(*part) for part in listed] for name, listed in found.pop("parts").items()}
            return cls(parts=parts, **found)
        except (OSError, ValueError, TypeError, KeyError):
            return cls()

    def write(self, local: Path) -> None:
        replace(
            local / MARK, json.dumps({"parts": self.listed(), **{k: v for k, v in vars(self).items() if k != "parts"}})
        )

    def listed(self) -> dict[str, list[tuple[int, int, str]]]:
        return {name: [(part.start, part.end, part.sum) for part in parts] for name, parts in self.parts.items()}


def push(local: Path, storage: Storage, *, writer: str | None = None, check: Callable[[], None] = lambda: None) -> None:
    """Send all that changed since the last call. `check` raises unless `writer` still is the run's. Raises RunError."""
    sent = Sent.read(local)
    others = _others(local)
    grown = {name for name in others if _grows(name)}
    files = {name: stamp for name, stamp in others.items() if name not in grown and sent.others.get(name) != stamp}
    dropped = [*sent.gone, *(name for name in sent.others if name not in others)]
    for name in sorted(grown):
        before = sent.parts.get(name, [])
        sent.parts[name], bodies = _parts(local / name, before)
        for part, body in bodies:
            storage.write(part.below(name), body)
        dropped += [part.below(name) for part in before if part not in sent.parts[name]]
    for name in [name for name in sent.parts if name not in grown]:
        dropped += [part.below(name) for part in sent.parts.pop(name)]
    steps = {name: path for dataset in DATASETS for name, path in _newer(local, dataset, sent.steps.get(dataset, -1))}
    storage.put({**{name: local / name for name in files}, **steps})
    sent.others = {name: stamp for name, stamp in others.items() if name not in grown}
    sent.steps = {dataset: max(sent.steps.get(dataset, -1), *_steps(local, dataset), -1) for dataset in DATASETS}
    records = {"parts": sent.listed(), "others": sorted(sent.others), "writer": writer}
    storage.write_as_owner(RECORDS, json.dumps(records).encode(), check)
    counted = {*steps, *others, *(part.below(name) for name, parts in sent.parts.items() for part in parts)}
    sent.gone = sorted(set(dropped) - counted)
    sent.write(local)  # before: of what it names nothing may be missing
    if sent.gone:
        check()
        storage.delete(sent.gone)
        sent.gone = []
        sent.write(local)


def rewound(local: Path, step: int) -> None:
    """Mark records after a step for deletion with the next push. Call it before they are deleted here."""
    sent = Sent.read(local)
    for dataset, newest in sent.steps.items():
        if newest > step:
            paths = [path for n, path in _steps(local, dataset).items() if step < n <= newest and path.is_file()]
            sent.gone += [path.relative_to(local).as_posix() for path in paths]
            sent.steps[dataset] = step
    sent.write(local)


def fetch(storage: Storage, into: Path) -> None:
    """Download all records into a folder that does not exist yet. Raises RunError."""
    sent, others = _stored(storage)
    into.mkdir(parents=True)
    for dataset in DATASETS:
        depth = 1 if DATASETS[dataset] else 2
        steps = {
            name: _step(dataset, name.split("/")[1]) for name in storage.names(dataset) if name.count("/") == depth
        }
        ours = {name: step for name, step in steps.items() if step is not None}
        storage.get({name: into / name for name in ours})
        sent.steps[dataset] = max(ours.values(), default=-1)
    # a start that was cut short has no list yet; and who deletes a page has it made again
    storage.get({name: into / name for name in storage.there({*FIRST, *others})})
    for name, parts in sent.parts.items():
        path = into / name
        pieces = {part: path.with_name(f".{path.name}.{part.start}") for part in parts}
        storage.get({part.below(name): piece for part, piece in pieces.items()})
        with writing(path), path.open("wb") as whole:
            for part, piece in pieces.items():
                body = piece.read_bytes()
                if _sum(body) != part.sum:
                    raise RunError(f"{storage.place}/{part.below(name)} is cut short or changed; restore it")
                whole.write(body)
                piece.unlink()
    sent.others = {name: stamp for name, stamp in _others(into).items() if not _grows(name)}
    sent.write(into)


def _stored(storage: Storage) -> tuple[Sent, list[str]]:
    """Return the parts that count in storage, and the names of the other files. Raises RunError."""
    return _parsed(storage, storage.read(RECORDS))


def _parsed(storage: Storage, found: bytes | None) -> tuple[Sent, list[str]]:
    try:
        records = json.loads(found or '{"parts": {}, "others": []}')
        sent = Sent(parts={name: [Part(*part) for part in parts] for name, parts in records["parts"].items()})
        others = [str(name) for name in records["others"]]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RunError(f"{storage.place}/{RECORDS} is not what a run leaves there ({error}); restore it") from None
    if strange := [name for name in (*sent.parts, *others) if not is_plain(name)]:
        raise RunError(f"{storage.place}/{RECORDS} names {strange}, which lead out of the run; restore it")
    return sent, others


def close(storage: Storage, writer: str, check: Callable[[], None]) -> None:
    """Put the name of the run's new writer in RECORDS, so that what an earlier one is sending does not count."""
    while storage.conditional:
        seen = storage.seen(RECORDS)
        if seen.content is None:
            return
        _parsed(storage, seen.content)
        check()
        if storage.replace(RECORDS, json.dumps({**json.loads(seen.content), "writer": writer}).encode(), seen):
            return


def catch_up(local: Path, storage: Storage) -> None:
    """Download all records once more if storage has some that a copy has not. Raises RunError.

    Nothing may be written on another machine any more: see `close`.
    """
    sent, _ = _stored(storage)
    ends = {name: parts[-1].end for name, parts in sent.parts.items() if parts}
    if all((local / name).is_file() and (local / name).stat().st_size >= end for name, end in ends.items()):
        return
    made = partial_path(local)
    with writing(local):
        try:
            fetch(storage, made)
            for path in sorted(path for path in made.rglob("*") if path.is_file()):
                target = local / path.relative_to(made)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.replace(target)
        finally:
            shutil.rmtree(made, ignore_errors=True)


def clear(local: Path, storage: Storage) -> None:
    """Delete parts that an interrupted push left behind. Call it after a push."""
    sent = Sent.read(local)
    counted = {part.below(name) for name, parts in sent.parts.items() for part in parts}
    storage.delete([name for grown in sent.parts for name in storage.names(grown) if _is_part(name, counted)])


def _is_part(name: str, counted: Collection[str]) -> bool:
    """Return whether a name is a part that does not count; files that others put there are left alone."""
    return PART.fullmatch(name.rpartition("/")[2]) is not None and name not in counted


def _parts(path: Path, before: list[Part]) -> tuple[list[Part], list[tuple[Part, bytes]]]:
    """Return the parts that make up a file now, and the bytes of those that are still to be sent."""
    kept: list[Part] = []
    with path.open("rb") as file:
        for part in before:
            if _sum(file.read(part.end - part.start)) != part.sum:
                break
            kept.append(part)
        start = kept[-1].end if kept else 0
        end = os.fstat(file.fileno()).st_size
        spans = _rolled([*((part.start, part.end) for part in kept), *([(start, end)] if end > start else [])])
        had = {(part.start, part.end): part for part in kept}
        found: list[Part] = []
        bodies: list[tuple[Part, bytes]] = []
        for span in spans:
            if span not in had:
                file.seek(span[0])
                body = file.read(span[1] - span[0])
                had[span] = Part(*span, _sum(body))
                bodies.append((had[span], body))
            found.append(had[span])
    return found, bodies


def _rolled(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Merge the last spans into one while FEW of them are in the size class of the last."""
    while spans:
        last = _size(spans[-1])
        count = next((n for n, span in enumerate(reversed(spans)) if _size(span) > last), len(spans))
        if count < FEW:
            break
        spans = [*spans[:-count], (spans[-count][0], spans[-1][1])]
    return spans


def _size(span: tuple[int, int]) -> int:
    """Return a span's size class: 0 below SMALL, 1 below FEW times that, ..."""
    size, bytes_here = 0, span[1] - span[0]
    while bytes_here >= SMALL * FEW**size:
        size += 1
    return size


def _grows(name: str) -> bool:
    return name.endswith(GROWING[0]) or GROWING[1] in name


def _step(dataset: str, name: str) -> int | None:
    """Return the step of a dataset's file, None if the run has not made it."""
    ending = DATASETS[dataset]
    return step_of(name.removesuffix(ending)) if name.endswith(ending) else None


def _steps(local: Path, dataset: str) -> dict[int, Path]:
    """Return the local files of a dataset, by step."""
    folder = local / dataset
    names = os.listdir(folder) if folder.is_dir() else []
    return {step: folder / name for name in names if (step := _step(dataset, name)) is not None}


def _newer(local: Path, dataset: str, step: int) -> Iterator[tuple[str, Path]]:
    """Yield a dataset's files after a step, by name."""
    for found, path in sorted(_steps(local, dataset).items()):
        if found > step:
            for file in [path] if path.is_file() else sorted(path.iterdir()):
                yield file.relative_to(local).as_posix(), file


def _others(local: Path) -> dict[str, list[int]]:
    """Return size and time of change of each visible file outside datasets and checkpoints."""
    found = {}
    for folder, folders, names in os.walk(local):
        if Path(folder) == local:
            folders[:] = [name for name in folders if name not in (*DATASETS, "checkpoints", "set-aside")]
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(folder, name) for name in names if not name.startswith(".")):
            status = path.stat()
            found[path.relative_to(local).as_posix()] = [status.st_size, status.st_mtime_ns]
    return found


def _sum(body: bytes) -> str:
    return xxhash.xxh3_64(body).hexdigest()
