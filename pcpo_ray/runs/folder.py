"""Where a run is: a folder of this machine, and for a run kept in storage the copy of it there, which counts.

A run at s3://bucket/runs/mine works in a folder of each machine's own below PCPO_RAY_CACHE (~/.cache/pcpo_ray), the
driver in one, the learner's ranks in theirs where they are on other machines. Into storage go

- what the driver records (outbox.py), with every evaluation, before every checkpoint and at the end;
- a checkpoint by the rank that wrote it, state.json last: one that has it, and all that it names, is whole;
- what a roll-back leaves behind, in set-aside/;
- `.writer`, the token of the process that started or resumed the run last (writer.py). It tells whether a folder that
  is there is what storage holds, or more (its last writer's own), or was left behind by a run that went on elsewhere;
  and a driver that finds another's stops, as two would overwrite each other.

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

from pcpo_ray.errors import AwayError, CheckpointError, RunError, TakenOverError
from pcpo_ray.runs import checkpoints, disk, outbox, writer
from pcpo_ray.runs.disk import writing
from pcpo_ray.runs.storage import PATIENCE, Storage, child, is_url, patiently, shown
from pcpo_ray.runs.writer import WRITER, Token

CONFIG, INPUTS = "config.yaml", "inputs.json"
CHECKPOINTS = "checkpoints"
SET_ASIDE = "set-aside"
"""Where checkpoints are that a roll-back left behind: none of them is the run's newest."""
SETTLING = 0.5
"""Seconds after which of two who start a run at once in storage the one that was first has seen it."""

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunFolder:
    """A run's folder: `local` on this machine, `url` in storage (None: it is nowhere else).

    `writer` is the token of whoever may write it; a folder without one is not looked after.
    """

    local: Path
    url: str | None = None
    writer: str | None = None

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
        return checkpoints.folder_for(self.local, step)

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
        if self.local.exists():
            token, own = Token.of(storage.read(WRITER)), writer.read(self.local)
            if token is not None and token == own:
                return
            self._set_aside(say, "as the run in storage is not the one that was left there")
        say(f"fetching {self.place}")
        self._fetch_records(self.local)

    def claim(self, *, new: bool = False) -> "RunFolder":
        """The folder of which this process is the one writer from now on; what another one left half-made goes.

        Raises RunError while a process of this machine is, or, of a new run, where somebody was quicker.
        """
        token = Token.new()
        writer.lock(self.local)
        if self.url is not None:
            storage = self._storage
            # pyarrow has no conditional writes (If-None-Match), so who was quicker is seen by looking again
            if new and (found := Token.of(storage.read(WRITER))):
                raise RunError(f"{self.place} has just been started by {found}; give another name=...")
            storage.write(WRITER, token.text.encode())
            if new:
                time.sleep(SETTLING)
            writer.check(token.id, Token.of(storage.read(WRITER)), self.place, self.local)
        writer.take(self.local, token)
        checkpoints.recover_interrupted(self.local)
        return dataclasses.replace(self, writer=token.id)

    def check_here(self) -> None:
        """See that this process may still write the folder on this machine. Raises TakenOverError."""
        if self.writer is not None:
            writer.check(self.writer, writer.read(self.local), self.place, self.local)

    def check(self) -> None:
        """See that the run is still its writer's, wherever this process is. Raises TakenOverError."""
        if self.url is None:
            self.check_here()
        elif self.writer is not None:
            writer.check(self.writer, Token.of(self._storage.read(WRITER)), self.place, self.local)

    def push_records(self, *, patience: float = PATIENCE) -> None:
        """Put all that changed since the last time into storage, but for checkpoints.

        Raises RunError where that fails, AwayError where it was away for `patience` seconds, and TakenOverError.
        """
        if self.url is None:
            return
        with self._kept():
            for attempt in patiently(patience):
                with attempt:
                    self.check()
                    outbox.push(self.local, self._storage)

    def tidy(self) -> None:
        """Delete from storage what pushes that were cut short have left; to be called after one that was not."""
        if self.url is not None:
            outbox.clear(self.local, self._storage)

    def rewound(self, step: int) -> None:
        """Have storage forget, with the next push, what is recorded past a step; to be called before it goes here."""
        if self.url is not None:
            outbox.rewound(self.local, step)

    def newest(self, say: Say) -> int | None:
        """The step of the newest checkpoint that is whole; `say` is told of each newer one that is not."""
        found = checkpoints.newest(self.local, say)
        step = None if found is None else checkpoints.step_of(found.name)
        if self.url is None:
            return step
        stored: int | None = patiently()(self._newest_stored, say)
        if step is not None and (stored is None or step > stored):
            self.push_checkpoint(step)  # written, but not sent before the process ended
            return step
        return stored

    def steps(self) -> list[int]:
        """Of which there are checkpoints, the newest last."""
        if self.url is None:
            found = {checkpoints.step_of(folder.name) for folder in checkpoints.all_checkpoints(self.local)}
        else:
            found = {_step(name) for name in self._storage.names(CHECKPOINTS)}
        return sorted(found - {None})  # type: ignore[arg-type]

    def newest_until(self, step: int) -> int | None:
        """The newest step up to this one of which there is a checkpoint."""
        return max((found for found in patiently()(self.steps) if found <= step), default=None)

    def prune(self, keep: int, spared: int | None = None) -> None:
        """Delete all checkpoints but the newest `keep` and `spared`'s; of one that is stored state.json goes first.

        Storage that is away keeps them until the next time.
        """
        with contextlib.suppress(AwayError):
            self.check()
            if self.url is None:
                return checkpoints.prune(self.local, keep, None if spared is None else self.checkpoint(spared))
            for step in self.steps()[:-keep]:
                if step != spared:
                    _delete_checkpoint(self._storage, _below(step))
        return None

    def set_aside_after(self, step: int) -> None:
        """Move every checkpoint newer than a step's to set-aside/."""
        self.check()
        for later in (found for found in patiently()(self.steps) if found > step):
            folder = self.fetch_checkpoint(later)
            aside = self.local / SET_ASIDE / folder.name
            with writing(aside):
                aside.parent.mkdir(exist_ok=True)
                disk.swap_in(folder, aside)
                disk.sync(folder.parent)
            if self.url is not None:
                files = [path for path in aside.rglob("*") if path.is_file()]
                with self._kept():
                    for attempt in patiently():
                        with attempt:
                            self._storage.put({path.relative_to(self.local).as_posix(): path for path in files})
                            _delete_checkpoint(self._storage, _below(later))

    def discard(self) -> None:
        """Forget a run that did not start. Raises TakenOverError where it is another's by now."""
        self.check()
        if self.url is not None:
            self._storage.delete([CONFIG])  # first: what has none is no run
            self._storage.delete_folder("")
        shutil.rmtree(self.local)

    # -- the learner's ----------------------------------------------------------------------------------------------

    def push_checkpoint(self, step: int) -> None:
        """Put a checkpoint that is whole here into storage, asking again while it is away; of those here only this
        one stays.
        """
        if self.url is None:
            return
        storage, folder, name = self._storage, self.checkpoint(step), _below(step)
        files = {f"{name}/{path.relative_to(folder).as_posix()}": path for path in folder.rglob("*") if path.is_file()}
        last = files.pop(f"{name}/{checkpoints.STATE}")
        with self._kept():
            for attempt in patiently():
                with attempt:
                    self.check()
                    _delete_checkpoint(storage, name)
                    storage.put(files, fresh=True)
                    self.check()
                    storage.put({f"{name}/{checkpoints.STATE}": last})
        for other in checkpoints.all_checkpoints(self.local):
            if other != folder:
                checkpoints.delete(other)
        checkpoints.recover_interrupted(self.local)

    def fetch_checkpoint(self, step: int) -> Path:
        """A step's checkpoint on this machine, from storage unless it is here. Raises CheckpointError, RunError."""
        if self.url is None:
            return self.checkpoint(step)
        found: Path = patiently()(self._fetch_checkpoint, step)
        return found

    def _fetch_checkpoint(self, step: int) -> Path:
        folder, storage, name = self.checkpoint(step), self._storage, _below(step)
        state = storage.read(f"{name}/{checkpoints.STATE}")
        if state is None:
            raise CheckpointError(f"there is no whole checkpoint at {self.place}/{name}")
        with _one_at_a_time(folder):
            with contextlib.suppress(CheckpointError, OSError):
                if (folder / checkpoints.STATE).read_bytes() == state:
                    checkpoints.verify(folder)
                    return folder
            with checkpoints.unfinished(folder) as made:
                prefix = f"{name}/"
                storage.get({found: made / found.removeprefix(prefix) for found in storage.names(name)})
                try:
                    checkpoints.verify(made)
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
        for step in sorted({step for name in names if (step := _step(name)) is not None}, reverse=True):
            name = _below(step)
            state = storage.read(f"{name}/{checkpoints.STATE}")
            try:
                needed = None if state is None else json.loads(state)["files"]
            except (ValueError, KeyError, TypeError):
                needed = None
            if needed is not None and all(f"{name}/{file}" in names for file in needed):
                return step
            say(f"checkpoint {self.place}/{name} is not whole: its upload was cut short; falling back to an older one")
        return None

    def _fetch_records(self, into: Path) -> None:
        made = disk.partial_path(into)
        with writing(into):
            try:
                outbox.fetch(self._storage, made)
                made.rename(into)
            finally:
                shutil.rmtree(made, ignore_errors=True)

    def _set_aside(self, say: Say, why: str) -> None:
        writer.lock(self.local)  # nobody's work under way
        aside = self.local.with_name(f"{self.local.name}.{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}")
        with writing(self.local):
            self.local.rename(aside)
        say(f"the folder {self.local}, {why}, is now {aside}; delete it when you need nothing of it")

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        """What fails inside lost nothing: say so."""
        try:
            yield
        except TakenOverError:
            raise
        except RunError as error:
            raise type(error)(f"{error}, then go on with --resume: {self.local} keeps what was not stored") from error


def _below(step: int) -> str:
    return checkpoints.folder_for(Path(), step).as_posix()


def _step(name: str) -> int | None:
    """The step of the checkpoint that a file in storage is of; None where it is of none of ours."""
    parts = name.split("/")
    return checkpoints.step_of(parts[1]) if len(parts) > 2 else None


def _delete_checkpoint(storage: Storage, name: str) -> None:
    storage.delete([f"{name}/{checkpoints.STATE}"])  # first: what has none is not whole
    storage.delete_folder(name)


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
