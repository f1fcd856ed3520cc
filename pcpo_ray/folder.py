"""Where a run is: a folder of this machine, and for a run kept in storage the copy of it there, which counts.

A run at s3://bucket/runs/mine works in a folder of each machine's own below PCPO_RAY_CACHE (~/.cache/pcpo_ray), the
driver in one, the learner's ranks in theirs where they are on other machines. Into storage go

- what the driver records, whole files, with every evaluation, before every checkpoint and at the end;
- a checkpoint by the rank that wrote it, state.json last: one that has it, and all that it names, is whole;
- what a roll-back leaves behind, in set-aside/;
- `.writer`, made anew by each process that starts or resumes the run. It tells whether a folder that is there is what
  storage holds, or more (its last writer's own), or was left behind by a run that went on elsewhere; and a driver that
  finds another's stops, as two would overwrite each other.

So records never lag behind checkpoints, and any machine continues the run from storage alone.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pcpo_ray import checkpoint, disk
from pcpo_ray.disk import writing
from pcpo_ray.errors import CheckpointError, RunError
from pcpo_ray.storage import Storage, child, is_url, shown

CONFIG, INPUTS, WRITER = "config.yaml", "inputs.json", ".writer"
CHECKPOINTS = "checkpoints"
SET_ASIDE = "set-aside"
"""Where checkpoints are that a roll-back left behind: none of them is the run's newest."""
MARK = ".stored.json"
"""In the local folder: whose it is, and size and time of each file as it went into storage or came from there."""

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunFolder:
    """A run's folder: `local` on this machine, `url` in storage (None: it is nowhere else)."""

    local: Path
    url: str | None = None

    @classmethod
    def of(cls, place: str) -> "RunFolder":
        """The folder that a path or a URL names. Raises RunError for a URL that cannot be one."""
        if not is_url(place):
            return cls(local=Path(place))
        storage = Storage(place)
        return cls(local=_cache(storage.url), url=storage.url)

    @classmethod
    def below(cls, runs: str, name: str) -> "RunFolder":
        """The folder of a run, by what --runs says and its name."""
        return cls.of(child(runs, name)) if is_url(runs) else cls(local=Path(runs) / name)

    @property
    def place(self) -> str:
        """As messages name it."""
        return str(self.local) if self.url is None else shown(self.url)

    def here(self) -> "RunFolder":
        """The same run's folder for another process, wherever it runs."""
        local = self.local.resolve() if self.url is None else _cache(self.url)
        return dataclasses.replace(self, local=local)

    def checkpoint(self, step: int) -> Path:
        """Where a step's checkpoint lies on this machine."""
        return checkpoint.folder_for(self.local, step)

    def checkpoint_place(self, step: int) -> str:
        """As messages name it."""
        return str(self.checkpoint(step).absolute()) if self.url is None else f"{self.place}/{_below(step)}"

    @property
    def _storage(self) -> Storage:
        assert self.url is not None
        return Storage(self.url)

    # -- the driver's -----------------------------------------------------------------------------------------------

    def started(self) -> bool:
        """Whether there is a run to resume."""
        if self.url is None:
            return (self.local / CONFIG).is_file()
        return self._storage.read(CONFIG) is not None

    def claim_new(self, say: Say) -> None:
        """See that storage has nothing there yet. Raises RunError where it has, or cannot be reached or written."""
        if self.url is None:
            return
        storage = self._storage
        if set(storage.names()) - {WRITER}:
            raise RunError(f"{self.place} exists; continue it with --resume, give another name=..., or delete it")
        if self.local.exists():
            self._set_aside(say, "of which storage has nothing")
        storage.write(WRITER, b"")

    def take_over(self, say: Say) -> None:
        """Make this machine's folder what storage holds, or more, to continue from. Raises RunError if there is no run.

        A folder that storage is not the copy of is renamed, not deleted.
        """
        if self.url is None:
            return
        storage = self._storage
        if storage.read(CONFIG) is None:
            raise RunError(f"there is no run at {self.place} to resume; leave out --resume to start it")
        writer = (storage.read(WRITER) or b"").decode()
        if self.local.exists():
            if writer and self._mark().get("writer") == writer:
                return
            self._set_aside(say, "as the run in storage is not the one that was left there")
        say(f"fetching {self.place}")
        self._fetch_records(self.local)

    def claim(self) -> None:
        """Be the run's writer from now on, and put what is recorded into storage."""
        if self.url is None:
            return
        writer = uuid.uuid4().hex
        self._storage.write(WRITER, writer.encode())
        self._set_mark({**self._mark(), "writer": writer})
        self.push_records()

    def push_records(self) -> None:
        """Put all that changed since the last time into storage, but for checkpoints.

        Raises RunError where that fails, and where another process is the run's writer by now.
        """
        if self.url is None:
            return
        storage, mark = self._storage, self._mark()
        if (storage.read(WRITER) or b"").decode() != mark.get("writer"):
            raise RunError(
                f"another process has taken over the run {self.place}; stop one of them. "
                f"What this one has recorded is in {self.local}"
            )
        before, now = mark.get("files", {}), _records(self.local)
        with self._kept():
            storage.put({name: self.local / name for name, stamp in now.items() if before.get(name) != stamp})
            storage.delete(sorted(before.keys() - now.keys()))
        self._set_mark({**mark, "files": now})

    def newest(self, say: Say) -> int | None:
        """The step of the newest checkpoint that is whole; `say` is told of each newer one that is not."""
        found = checkpoint.newest(self.local, say)
        step = None if found is None else _step(found)
        if self.url is None:
            return step
        stored = self._newest_stored(say)
        if step is not None and (stored is None or step > stored):
            self.push_checkpoint(step)  # written, but not sent before the process ended
            return step
        return stored

    def steps(self) -> list[int]:
        """Of which there are checkpoints, the newest last."""
        if self.url is None:
            return [_step(folder) for folder in checkpoint.everyone(self.local)]
        return sorted({_step(Path(name.split("/")[1])) for name in self._storage.names(CHECKPOINTS)})

    def newest_until(self, step: int) -> int | None:
        """The newest step up to this one of which there is a checkpoint."""
        return max((found for found in self.steps() if found <= step), default=None)

    def prune(self, keep: int, spared: int | None = None) -> None:
        """Delete all checkpoints but the newest `keep` and `spared`'s; of one that is stored state.json goes first."""
        if self.url is None:
            return checkpoint.prune(self.local, keep, None if spared is None else self.checkpoint(spared))
        storage = self._storage
        for step in self.steps()[:-keep]:
            if step != spared:
                _delete_checkpoint(storage, _below(step))
        return None

    def set_aside_after(self, step: int) -> None:
        """Move every checkpoint newer than a step's to set-aside/."""
        for later in (found for found in self.steps() if found > step):
            folder = self.fetch_checkpoint(later)
            aside = self.local / SET_ASIDE / folder.name
            with writing(aside):
                aside.parent.mkdir(exist_ok=True)
                shutil.rmtree(aside, ignore_errors=True)
                folder.rename(aside)
            if self.url is not None:
                files = [path for path in aside.rglob("*") if path.is_file()]
                with self._kept():
                    self._storage.put({path.relative_to(self.local).as_posix(): path for path in files})
                _delete_checkpoint(self._storage, _below(later))

    def discard(self) -> None:
        """Forget a run that did not start."""
        shutil.rmtree(self.local)
        if self.url is not None:
            self._storage.delete([CONFIG])  # first: what has none is no run
            self._storage.delete_folder("")

    # -- the learner's ----------------------------------------------------------------------------------------------

    def push_checkpoint(self, step: int) -> None:
        """Put a checkpoint that is whole here into storage; of those here only this one stays."""
        if self.url is None:
            return
        storage, folder, name = self._storage, self.checkpoint(step), _below(step)
        _delete_checkpoint(storage, name)
        files = {f"{name}/{path.relative_to(folder).as_posix()}": path for path in folder.rglob("*") if path.is_file()}
        last = files.pop(f"{name}/{checkpoint.STATE}")
        with self._kept():
            storage.put(files)
            storage.put({f"{name}/{checkpoint.STATE}": last})
        for other in checkpoint.everyone(self.local):
            if other != folder:
                with writing(other):
                    shutil.rmtree(other)

    def fetch_checkpoint(self, step: int) -> Path:
        """A step's checkpoint on this machine, from storage unless it is here. Raises CheckpointError, RunError."""
        folder = self.checkpoint(step)
        if self.url is None:
            return folder
        storage, name = self._storage, _below(step)
        state = storage.read(f"{name}/{checkpoint.STATE}")
        if state is None:
            raise CheckpointError(f"there is no whole checkpoint at {self.place}/{name}")
        with _one_at_a_time(folder):
            with contextlib.suppress(CheckpointError, OSError):
                if (folder / checkpoint.STATE).read_bytes() == state:
                    checkpoint.verify(folder)
                    return folder
            with checkpoint.unfinished(folder) as made:
                prefix = f"{name}/"
                storage.get({found: made / found.removeprefix(prefix) for found in storage.names(name)})
                try:
                    checkpoint.verify(made)
                except CheckpointError as error:
                    raise CheckpointError(
                        f"{self.place}/{name}, as it was fetched: {error}; delete its state.json, and --resume goes on "
                        "from an older one"
                    ) from None
                disk.swap_in(made, folder)
        return folder

    # -- for whoever reads a run ------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def fetched(self, *, records: bool = False, newest: bool = False, say: Say = print) -> Iterator["RunFolder"]:
        """The run's folder to read from, its own where it is on this machine; else a temporary one, with its config and
        what it began with.

        With `records` all that was recorded is there, with `newest` the newest whole checkpoint, if there is one.
        Raises RunError if there is no run.
        """
        if self.url is None:
            yield self
            return
        import tempfile

        storage = self._storage
        config = storage.read(CONFIG)
        if config is None:
            parent, _, _ = storage.place.rpartition("/")
            query = self.url.partition("?")[2]
            there = Storage(f"{parent}?{query}" if query else parent).folders() if "//" in parent else []
            raise RunError(f"there is no run at {self.place}; in {parent} there are {there or 'none'}")
        with tempfile.TemporaryDirectory() as temporary:
            read = dataclasses.replace(self, local=Path(temporary) / storage.place.rpartition("/")[2])
            if records:
                self._fetch_records(read.local)
            else:
                read.local.mkdir()
                (read.local / CONFIG).write_bytes(config)
                if (began := storage.read(INPUTS)) is not None:
                    (read.local / INPUTS).write_bytes(began)
            if newest and (step := read._newest_stored(say)) is not None:
                read.fetch_checkpoint(step)
            yield read

    def put(self, path: Path) -> None:
        """Put one file of the folder into storage."""
        if self.url is not None:
            self._storage.put({path.relative_to(self.local).as_posix(): path})

    # -- how --------------------------------------------------------------------------------------------------------

    def _newest_stored(self, say: Say) -> int | None:
        storage = self._storage
        names = set(storage.names(CHECKPOINTS))
        for folder in sorted({name.split("/")[1] for name in names}, reverse=True):
            name = f"{CHECKPOINTS}/{folder}"
            state = storage.read(f"{name}/{checkpoint.STATE}")
            try:
                needed = None if state is None else json.loads(state)["files"]
            except (ValueError, KeyError, TypeError):
                needed = None
            if needed is not None and all(f"{name}/{file}" in names for file in needed):
                return _step(Path(folder))
            say(f"checkpoint {self.place}/{name} is not whole: its upload was cut short; falling back to an older one")
        return None

    def _fetch_records(self, into: Path) -> None:
        storage = self._storage
        names = [name for name in storage.names() if not _is_apart(name)]
        beside = into.with_name(f".{into.name}.unfinished")
        with writing(into):
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
            storage.get({name: beside / name for name in names})
            beside.rename(into)
        dataclasses.replace(self, local=into)._set_mark({"files": _records(into)})

    def _set_aside(self, say: Say, why: str) -> None:
        aside = self.local.with_name(f"{self.local.name}.{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}")
        with writing(self.local):
            self.local.rename(aside)
        say(f"the folder {self.local}, {why}, is now {aside}; delete it when you need nothing of it")

    def _mark(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.local / MARK).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found

    def _set_mark(self, mark: dict[str, Any]) -> None:
        path, beside = self.local / MARK, self.local / f"{MARK}.new"
        with writing(path):
            beside.write_text(json.dumps(mark), encoding="utf-8")
            beside.rename(path)

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        """What fails inside lost nothing: say so."""
        try:
            yield
        except RunError as error:
            raise RunError(f"{error}, then go on with --resume: {self.local} keeps what was not stored") from error


def _below(step: int) -> str:
    return checkpoint.folder_for(Path(), step).as_posix()


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _delete_checkpoint(storage: Storage, name: str) -> None:
    storage.delete([f"{name}/{checkpoint.STATE}"])  # first: what has none is not whole
    storage.delete_folder(name)


def _is_apart(name: str) -> bool:
    """Whether a file is no record of the driver's: a checkpoint's, or what is unfinished or about the folder itself."""
    return name.startswith((f"{CHECKPOINTS}/", f"{SET_ASIDE}/")) or any(
        part.startswith(".") for part in name.split("/")
    )


def _records(folder: Path) -> dict[str, list[int]]:
    """Size in bytes and time of change of each file that the driver recorded."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not _is_apart(name):
            status = path.stat()
            found[name] = [status.st_size, status.st_mtime_ns]
    return found


def _cache(url: str) -> Path:
    """Where this machine keeps its own copy of what is at a URL."""
    root = Path(os.environ.get("PCPO_RAY_CACHE") or Path.home() / ".cache" / "pcpo_ray")
    name = shown(url).rpartition("/")[2]
    return root / "runs" / f"{name}-{hashlib.blake2b(url.encode(), digest_size=5).hexdigest()}"


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Of a machine's ranks one fetches a checkpoint, and the others find it there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
