"""A run in object storage, which every machine works on in a copy of its own.

A run at s3://bucket/runs/mine is worked on in a folder below PCPO_RAY_CACHE (~/.cache/pcpo_ray): the driver has one,
and so have the learner's ranks on other machines. Storage is authoritative. It receives

- what the driver records (outbox.py): with every evaluation, before every checkpoint and at the end;
- each checkpoint from the rank that wrote it, state.json last: a checkpoint is complete if that and all files it names
  are there;
- what a roll-back leaves behind, in set-aside/;
- `.writer`, the token of the process that last started or resumed the run (writer.py). It tells whether a working copy
  is what storage holds, or more (by the last writer itself), or was left behind by a run that went on elsewhere. A
  driver that finds another's token stops. With conditional writes (conditional.py) a start or resume replaces exactly
  the token that it saw at first, so of two at once one goes on; the list of records and each state.json are written
  so too. Elsewhere (file://, HDFS) a second look at the token stands in.

So records never lag behind checkpoints, and any machine can continue the run from storage alone.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from pcpo_ray.errors import AwayError, CheckpointError, RunError, TakenOverError
from pcpo_ray.runs import checkpoints, disk, outbox, stored_checkpoints, writer
from pcpo_ray.runs.conditional import Seen
from pcpo_ray.runs.disk import writing
from pcpo_ray.runs.folder import CONFIG, INPUTS, RunFolder, Say
from pcpo_ray.runs.names import step_of
from pcpo_ray.runs.storage import PATIENCE, Storage, patiently
from pcpo_ray.runs.stored_checkpoints import below
from pcpo_ray.runs.urls import shown
from pcpo_ray.runs.writer import WRITER, Token

SETTLING = 0.5
"""Seconds until two who claim a run at once, without conditional writes, can each see which of them was first."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredFolder(RunFolder):
    """A run at `url`; `local` is this machine's working copy."""

    url: str
    seen: Seen | None = dataclasses.field(default=None, repr=False, compare=False)
    """The token that `claim` is to replace, where `claim_new` or `take_over` saw one."""

    @classmethod
    def at(cls, url: str) -> Self:
        """Return the folder of the run at a URL. Raises RunError for a malformed URL."""
        storage = Storage(url)
        return cls(local=_cache(storage.url), url=storage.url)

    @property
    def place(self) -> str:
        return shown(self.url)

    @property
    def address(self) -> str:
        return self.place

    @property
    def working_copy(self) -> str:
        return f"{self.place} is worked on in {self.local}"

    def here(self) -> Self:
        return dataclasses.replace(self, local=_cache(self.url))

    def checkpoint_place(self, step: int) -> str:
        return f"{self.place}/{below(step)}"

    @property
    def _storage(self) -> Storage:
        return Storage(self.url)

    # -- for the driver ---------------------------------------------------------------------------------------------

    def started(self) -> bool:
        return self._storage.read(CONFIG) is not None

    def check_lasting(self) -> None:
        pass  # storage does not go with a job

    def claim_new(self, say: Say) -> Self:
        storage = self._storage
        if set(storage.names()) - {WRITER}:
            raise RunError(f"{self.place} exists; continue it with --resume, give another name=..., or delete it")
        if self.local.exists():
            self._rename_copy(say, "of which storage has nothing")
        seen = storage.seen(WRITER)
        if seen.content is None:  # else a start was cut short, or another one is under way
            written = storage.replace(WRITER, b"", seen, prove=True)
            seen = storage.seen(WRITER)
            if not written or seen.content:
                raise self._just_started(storage)
        return dataclasses.replace(self, seen=seen)

    def take_over(self, say: Say) -> Self:
        """Make the working copy what storage holds, or more. A copy of another run's state is renamed, not deleted."""
        storage = self._storage
        if storage.read(CONFIG) is None:
            raise RunError(f"there is no run at {self.place} to resume; leave out --resume to start it")
        seen = storage.seen(WRITER)
        if not self.local.exists() or (stored := Token.of(seen.content)) is None or stored != writer.read(self.local):
            if self.local.exists():
                self._rename_copy(say, "as the run in storage is not the one that was left there")
            say(f"fetching {self.place}")
            self._fetch_records(self.local)
        return dataclasses.replace(self, seen=seen)

    def claim(self, *, new: bool = False) -> Self:
        return dataclasses.replace(super().claim(new=new), seen=None)

    def _announce(self, token: Token, *, new: bool) -> None:
        storage = self._storage
        seen = self.seen or storage.seen(WRITER)
        known = new and self.seen is None and Token.of(seen.content) is not None
        changed = not storage.conditional and storage.read(WRITER) != seen.content
        if known or changed or not storage.replace(WRITER, token.text.encode(), seen, prove=True):
            raise self._just_started(storage)
        if not storage.conditional:
            time.sleep(SETTLING)
        writer.check(token.id, Token.of(storage.read(WRITER)), self.place, self.local)

    def _just_started(self, storage: Storage) -> RunError:
        text = f"has just been started or resumed by {Token.of(storage.read(WRITER)) or 'another process'}"
        return RunError(f"{self.place} {text}; stop that, then --resume, or give another name=...")

    def check(self) -> None:
        if self.writer is not None:
            writer.check(self.writer, Token.of(self._storage.read(WRITER)), self.place, self.local)

    def push_records(self, *, patience: float = PATIENCE) -> None:
        with self._explained():
            for attempt in patiently(patience):
                with attempt:
                    self.check()
                    outbox.push(self.local, self._storage, writer=self.writer, check=self.check)

    def tidy(self) -> None:
        outbox.clear(self.local, self._storage)

    def rewound(self, step: int) -> None:
        outbox.rewound(self.local, step)

    def newest(self, say: Say) -> int | None:
        newest = checkpoints.newest(self.local, say)
        step = None if newest is None else step_of(newest.name)
        stored: int | None = patiently()(self._newest_stored, say)
        unsent = step is not None and (stored is None or step > stored)
        if step is not None and unsent and self.writer is not None:  # what a reader's copy has more was taken back
            self.push_records()  # before: a checkpoint must not outrun what led to it
            self.push_checkpoint(step)  # the process ended between writing and sending it
            return step
        return stored

    def catch_up(self) -> None:
        if self.writer is not None:
            patiently()(outbox.close, self._storage, self.writer, self.check)
        patiently()(outbox.catch_up, self.local, self._storage)

    def steps(self) -> list[int]:
        steps: list[int] = patiently()(stored_checkpoints.steps, self._storage)
        return steps

    def prune(self, keep: int, until: int, spared: int | None = None) -> None:
        with contextlib.suppress(AwayError):  # unreachable storage keeps them
            self.check()
            stored_checkpoints.prune(self._storage, keep, until, spared)

    def _store_aside(self, step: int, aside: Path) -> None:
        files = [path for path in aside.rglob("*") if path.is_file()]
        with self._explained():
            for attempt in patiently():
                with attempt:
                    self._storage.put({path.relative_to(self.local).as_posix(): path for path in files})
                    stored_checkpoints.delete(self._storage, step)

    def discard(self) -> None:
        self.check()
        token = Token.of(self._storage.read(WRITER))
        if token is not None and token.own:
            self._storage.delete([CONFIG])  # first: without it, there is no run
            self._storage.delete_folder("")
        shutil.rmtree(self.local)

    # -- for the learner --------------------------------------------------------------------------------------------

    def push_checkpoint(self, step: int) -> None:
        """Store a checkpoint, retrying while storage is away, and delete all others on this machine."""
        storage, folder, name = self._storage, self.checkpoint(step), below(step)
        files = {f"{name}/{path.relative_to(folder).as_posix()}": path for path in folder.rglob("*") if path.is_file()}
        with writing(folder):
            last = files.pop(f"{name}/{checkpoints.STATE}").read_bytes()
        with self._explained():
            for attempt in patiently():
                with attempt:
                    self.check()
                    if not stored_checkpoints.holds(storage, step, files, last):
                        stored_checkpoints.delete(storage, step)
                        storage.put(files, fresh=True)
                        storage.write_as_owner(f"{name}/{checkpoints.STATE}", last, self.check)
        for other in checkpoints.all_checkpoints(self.local):
            if other != folder:
                checkpoints.delete(other)
        checkpoints.recover_interrupted(self.local)

    def check_saved(self, step: int) -> None:
        pass  # every node reads from storage

    def fetch_checkpoint(self, step: int) -> Path:
        folder: Path = patiently()(self._fetch_checkpoint, step)
        return folder

    def _fetch_checkpoint(self, step: int) -> Path:
        folder, storage, name = self.checkpoint(step), self._storage, below(step)
        state = stored_checkpoints.state(storage, step)
        if state is None:
            raise CheckpointError(f"there is no whole checkpoint at {self.place}/{name}")
        with _one_at_a_time(folder):
            with contextlib.suppress(CheckpointError, OSError):
                if (folder / checkpoints.STATE).read_bytes() == state:
                    checkpoints.verify(folder)
                    return folder
            with checkpoints.unfinished(folder) as partial:
                prefix = f"{name}/"
                storage.get({stored: partial / stored.removeprefix(prefix) for stored in storage.names(name)})
                try:
                    checkpoints.verify(partial)
                except CheckpointError as error:
                    raise CheckpointError(
                        f"{self.place}/{name}, as it was fetched: {error}; delete its state.json, and --resume goes on "
                        "from an older one"
                    ) from None
                disk.swap_in(partial, folder)
        return folder

    # -- for readers of a run ---------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def fetched(self, *, records: bool = False, newest: bool = False, say: Say = print) -> Iterator[RunFolder]:
        """Open a temporary copy of the run for reading; see RunFolder."""
        storage = self._storage
        config = storage.read(CONFIG)
        if config is None:
            parent, _, _ = storage.place.rpartition("/")
            query = self.url.partition("?")[2]
            there = Storage(f"{parent}?{query}" if query else parent).folders() if "//" in parent else []
            raise RunError(f"there is no run at {self.place}; in {parent} there are {', '.join(there) or 'none'}")
        with tempfile.TemporaryDirectory() as temporary:
            copy = dataclasses.replace(self, local=Path(temporary) / storage.place.rpartition("/")[2])
            if records:
                self._fetch_records(copy.local)
            else:
                copy.local.mkdir()
                (copy.local / CONFIG).write_bytes(config)
                if (inputs := storage.read(INPUTS)) is not None:
                    (copy.local / INPUTS).write_bytes(inputs)
            if newest and (step := copy._newest_stored(say)) is not None:
                copy.fetch_checkpoint(step)
            yield copy

    def put(self, path: Path) -> str:
        name = path.relative_to(self.local).as_posix()
        self._storage.put({name: path})
        return f"{self.place}/{name}"

    def _newest_stored(self, say: Say) -> int | None:
        return stored_checkpoints.newest(self._storage, self.place, say)

    def _fetch_records(self, into: Path) -> None:
        partial = disk.partial_path(into)
        with writing(into):
            try:
                outbox.fetch(self._storage, partial)
                partial.rename(into)
            finally:
                shutil.rmtree(partial, ignore_errors=True)

    def _rename_copy(self, say: Say, why: str) -> None:
        writer.lock(self.local)  # nobody is working in it
        aside = self.local.with_name(f"{self.local.name}.{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}")
        with writing(self.local):
            self.local.rename(aside)
        say(f"the folder {self.local}, {why}, is now {aside}; delete it when you need nothing of it")

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Add to errors raised inside that the working copy keeps what was not stored."""
        try:
            yield
        except TakenOverError:
            raise
        except RunError as error:
            raise type(error)(f"{error}, then go on with --resume: {self.local} keeps what was not stored") from error


def _cache(url: str) -> Path:
    """Return the folder of this machine's working copy of the run at a URL."""
    root = Path(os.environ.get("PCPO_RAY_CACHE") or Path.home() / ".cache" / "pcpo_ray")
    name = shown(url).rpartition("/")[2]
    return root / "runs" / f"{name}-{hashlib.blake2b(url.encode(), digest_size=5).hexdigest()}"


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Hold a lock so that one rank of a machine fetches a checkpoint and the others find it there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
