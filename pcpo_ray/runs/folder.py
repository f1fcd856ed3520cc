"""A run's folder: the interface that the loop, its workers and the commands use, and the one on this machine's disk.

`stored.StoredFolder` is the same for a run in object storage; `places` picks one by what the user gave.
"""

import contextlib
import dataclasses
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

from pcpo_ray.errors import ClusterError, RunError
from pcpo_ray.runs import checkpoints, disk, look, writer
from pcpo_ray.runs.disk import writing
from pcpo_ray.runs.names import step_of
from pcpo_ray.runs.storage import PATIENCE
from pcpo_ray.runs.writer import Token

CONFIG, INPUTS = "config.yaml", "inputs.json"
SET_ASIDE = "set-aside"
"""Folder for the checkpoints that a roll-back left behind; none of them is ever the run's newest."""
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunFolder(ABC):
    """A run's folder, with all that a run does to it; `local` is the working copy on this machine.

    `writer` is the id of the token of the process that may write it; a folder without one is not checked.
    """

    local: Path
    writer: str | None = None

    @property
    @abstractmethod
    def place(self) -> str:
        """The path or URL, as messages name it."""

    @property
    @abstractmethod
    def address(self) -> str:
        """The absolute path or the URL, valid outside this process's working folder."""

    @property
    @abstractmethod
    def working_copy(self) -> str | None:
        """A line that says where the working copy is; None where the run has no other."""

    @abstractmethod
    def here(self) -> Self:
        """Return the same run's folder for this process, wherever it runs."""

    def checkpoint(self, step: int) -> Path:
        """Return the path of a step's checkpoint on this machine."""
        return checkpoints.folder_for(self.local, step)

    @abstractmethod
    def checkpoint_place(self, step: int) -> str:
        """Return the path or URL of a step's checkpoint, as messages name it."""

    # -- for the driver ---------------------------------------------------------------------------------------------

    @abstractmethod
    def started(self) -> bool:
        """Return whether there is a run to resume."""

    @abstractmethod
    def check_lasting(self) -> None:
        """Check that the folder outlives the Ray job that writes it. Raises RunError."""

    @abstractmethod
    def claim_new(self, say: Say) -> Self:
        """Check that the place is free for a new run, and return the folder to claim.

        Raises RunError if it is not free, or cannot be reached or written.
        """

    @abstractmethod
    def take_over(self, say: Say) -> Self:
        """Bring the working copy up to date before resuming, and return the folder to claim.

        Raises RunError if there is no run.
        """

    def claim(self, *, new: bool = False) -> Self:
        """Return the folder with this process as its only writer; clears away what another one left unfinished.

        Raises RunError while another process of this machine writes it, or if somebody else started or resumed it
        since `claim_new` or `take_over` looked.
        """
        token = Token.new()
        writer.lock(self.local)
        self._announce(token, new=new)
        writer.take(self.local, token)
        checkpoints.recover_interrupted(self.local)
        return dataclasses.replace(self, writer=token.id)

    @abstractmethod
    def _announce(self, token: Token, *, new: bool) -> None:
        """Tell other machines who writes the run from now on."""

    def check_here(self) -> None:
        """Check that this process may still write the working copy. Raises TakenOverError."""
        if self.writer is not None:
            writer.check(self.writer, writer.read(self.local), self.place, self.local)

    @abstractmethod
    def check(self) -> None:
        """Check that the run still belongs to its writer, on whichever machine this is. Raises TakenOverError."""

    @abstractmethod
    def push_records(self, *, patience: float = PATIENCE) -> None:
        """Store whatever was recorded since the last call, checkpoints excepted.

        Raises RunError on failure, AwayError if storage was unreachable for `patience` seconds, and TakenOverError.
        """

    @abstractmethod
    def tidy(self) -> None:
        """Delete what interrupted pushes left in storage. Call it after a push that succeeded."""

    @abstractmethod
    def rewound(self, step: int) -> None:
        """Mark records after a step as dropped, for the next push. Call it before they are deleted here."""

    @abstractmethod
    def newest(self, say: Say) -> int | None:
        """Return the step of the newest complete checkpoint; `say` gets a line for each newer one that is damaged."""

    @abstractmethod
    def catch_up(self) -> None:
        """Fetch what another machine recorded after `take_over` and before `claim`. Call it after `newest`.

        So the records are no older than the checkpoint. Raises RunError.
        """

    @abstractmethod
    def steps(self) -> list[int]:
        """Return the steps whose checkpoint has its state.json, oldest first."""

    def newest_until(self, step: int) -> int | None:
        """Return the newest step up to this one that has a checkpoint."""
        return max((saved for saved in self.steps() if saved <= step), default=None)

    @abstractmethod
    def prune(self, keep: int, until: int, spared: int | None = None) -> None:
        """Delete the checkpoints up to a step but the newest `keep` whole ones and that of step `spared`.

        Newer ones, which a run that fell back to an older one has left, stay until it has done their steps again.
        """

    def set_aside_after(self, step: int) -> None:
        """Move every checkpoint newer than a step's to set-aside/."""
        self.check()
        for later in (saved for saved in self.steps() if saved > step):
            folder = self.fetch_checkpoint(later)
            aside = self.local / SET_ASIDE / folder.name
            with writing(aside):
                aside.parent.mkdir(exist_ok=True)
                disk.bring(folder, aside)
                if folder.exists():  # checkpoints/ is another device
                    checkpoints.delete(folder)
                disk.sync(folder.parent)
            self._store_aside(later, aside)

    @abstractmethod
    def _store_aside(self, step: int, aside: Path) -> None:
        """Move a step's stored checkpoint to set-aside/ too."""

    @abstractmethod
    def discard(self) -> None:
        """Delete a run that did not start, unless it is another process's, which started it at the same time.

        Raises TakenOverError if another process has taken it over.
        """

    # -- for the learner --------------------------------------------------------------------------------------------

    @abstractmethod
    def push_checkpoint(self, step: int) -> None:
        """Store a checkpoint that is complete on this machine."""

    @abstractmethod
    def check_saved(self, step: int) -> None:
        """Check that a checkpoint saved on another node can be read from this one. Raises ClusterError."""

    @abstractmethod
    def fetch_checkpoint(self, step: int) -> Path:
        """Return the path of a step's checkpoint, fetched if it is not here. Raises CheckpointError, RunError."""

    # -- for readers of a run ---------------------------------------------------------------------------------------

    @abstractmethod
    def fetched(
        self, *, records: bool = False, newest: bool = False, say: Say = print
    ) -> contextlib.AbstractContextManager["RunFolder"]:
        """Open the run's folder for reading, with at least its config and inputs.json.

        `records` asks for everything recorded, `newest` for the newest complete checkpoint, if there is one.
        Raises RunError if there is no run.
        """

    @abstractmethod
    def put(self, path: Path) -> str:
        """Store one file of the working copy and return where it is, as messages name it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalFolder(RunFolder):
    """A run on this machine's disk, or on one that all nodes mount: the working copy is the run."""

    @property
    def place(self) -> str:
        return str(self.local)

    @property
    def address(self) -> str:
        return str(self.local.absolute())

    @property
    def working_copy(self) -> None:
        return None

    def here(self) -> Self:
        return dataclasses.replace(self, local=self.local.resolve())

    def checkpoint_place(self, step: int) -> str:
        return str(self.checkpoint(step).absolute())

    def started(self) -> bool:
        return look.is_run(self.local)

    def check_lasting(self) -> None:
        if "working_dir_files" in self.local.resolve().parts:
            raise RunError(
                f"the run folder {self.local} would lie in a job's copy of the working folder, which Ray deletes "
                "after the job; give --runs an absolute path that all machines of the cluster share, or a URL such as "
                "s3://bucket/runs"
            )

    def claim_new(self, say: Say) -> Self:
        return self  # making the folder fails if it exists

    def take_over(self, say: Say) -> Self:
        if not self.started():
            raise look.nothing_to_resume(self.local)
        return self

    def _announce(self, token: Token, *, new: bool) -> None:
        pass  # the token in the folder is all there is

    def check(self) -> None:
        self.check_here()

    def push_records(self, *, patience: float = PATIENCE) -> None:
        pass

    def tidy(self) -> None:
        pass

    def rewound(self, step: int) -> None:
        pass

    def newest(self, say: Say) -> int | None:
        newest = checkpoints.newest(self.local, say)
        return None if newest is None else step_of(newest.name)

    def catch_up(self) -> None:
        pass

    def steps(self) -> list[int]:
        return checkpoints.steps(self.local)

    def prune(self, keep: int, until: int, spared: int | None = None) -> None:
        self.check()
        checkpoints.prune(self.local, keep, until, spared)

    def _store_aside(self, step: int, aside: Path) -> None:
        pass

    def discard(self) -> None:
        self.check()
        token = writer.read(self.local)
        if token is None or token.own:
            shutil.rmtree(self.local)

    def push_checkpoint(self, step: int) -> None:
        pass

    def check_saved(self, step: int) -> None:
        saved = self.checkpoint(step)
        if not saved.exists():
            raise ClusterError(
                f"the learner saved {saved.resolve()} on its own node, and it is not on this one; have runs lie on "
                "storage that all nodes share (--runs with a mounted path, or a URL such as s3://bucket/runs), or the "
                "learner on the node where you start it (workers.learner)"
            )

    def fetch_checkpoint(self, step: int) -> Path:
        return self.checkpoint(step)

    @contextlib.contextmanager
    def fetched(self, *, records: bool = False, newest: bool = False, say: Say = print) -> Iterator[RunFolder]:
        yield self

    def put(self, path: Path) -> str:
        return str(path)
