"""The learner's ranks, seen from the driver.

The driver calls for the weights, so the driver owns them: they survive the learner, and there is no store whose loss
could cost anything. Every call may be made twice: when a rank was out of reach for a moment, the driver asks for its
answer again, and the rank does not repeat the work.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray

from pcpo_ray.cluster.actors import LearnerActor
from pcpo_ray.cluster.calls import Call, all_answered
from pcpo_ray.cluster.failures import DEAF
from pcpo_ray.cluster.head import Head
from pcpo_ray.cluster.launch import BEAT, Launcher, end
from pcpo_ray.cluster.pool import WorkerPool
from pcpo_ray.data.types import Rollout, Task
from pcpo_ray.data.updates import DriverState, TrainingGroup, Update
from pcpo_ray.data.weights import Manifest
from pcpo_ray.errors import ClusterError, LearnerLostError, PcpoError, RolloutsLostError
from pcpo_ray.models import steps
from pcpo_ray.runs import checkpoints
from pcpo_ray.runs.folder import RunFolder
from pcpo_ray.workers.learner import mini_batches


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A version that samplers can load: references to its manifest and its buckets, and the manifest itself."""

    references: Sequence[ray.ObjectRef]
    manifest: Manifest


Versions = dict[tuple[int, bool], Stored]
"""The weights that samplers can load, by version and whether it is the EMA."""


Samplers = WorkerPool[Task, Rollout]
"""The pool that ranks are lent to."""


class RayLearner:
    """The learner's rank actors. Where one is lost, silent or broken, `recover` replaces all: none goes on alone.

    `versions` are the published weights: a checkpoint holds those that its begun batches need. Ranks that sample too
    (workers.learner.samples) are lent to `borrower` between updates.
    """

    def __init__(self, launcher: Launcher, versions: Versions, head: Head, borrower: Callable[[], Samplers]) -> None:
        self.launcher, self.head = launcher, head
        self.run = launcher.run
        self.workers = launcher.run.workers
        self.role = launcher.run.workers.learner
        self.versions = versions
        self.borrower = borrower
        self.draining: set[str] = set()
        """Nodes that were told to leave."""
        self.numbered = 0
        self.begun: tuple[int, list[int], list[list[float]]] | None = None
        self.held = False
        """True once every rank holds the trajectories that it learns from."""
        self.running: list[Call] = []
        self._start()

    def _start(self) -> None:
        self._forget_update()
        self.placement = self.launcher.reserve(self.role)
        self.actors = [
            self.launcher.make(LearnerActor, self.role, f"learner-{index}", index, **self.placement.options(index))
            for index in range(self.role.ranks)
        ]
        awaited = "the learner to start"
        if len(self.actors) == 1:
            self.beats = [self._ask(0, "start", awaited=awaited)]
        else:
            met = self._ask(0, "meet", "ranks", awaited=awaited)
            self.beats = [self._ask(index, "start_with", met, awaited=awaited) for index in range(len(self.actors))]
        self.listened = time.monotonic()
        self.heard = [self.listened] * len(self.actors)
        self.nodes: dict[int, str] = {}
        self.starting = set(range(len(self.actors)))
        self.buckets: int | None = None

    def _ask(self, index: int, name: str, *arguments: Any, awaited: str, returns: int = 1) -> Call:
        """Ask a rank to do something, once, however often it is asked; an argument may be another call's answer."""
        self.numbered += 1
        number = self.numbered
        call = self.actors[index].call.options(name=f"learner.{name}", num_returns=returns)

        def ask() -> Any:
            return call.remote(number, name, *(one.newest() if isinstance(one, Call) else one for one in arguments))

        return Call(ask, awaited)

    def _ask_all(self, name: str, *arguments: Any, awaited: str) -> list[Call]:
        return [self._ask(index, name, *arguments, awaited=awaited) for index in range(len(self.actors))]

    # -- LearnerGroup -----------------------------------------------------------------------------------------------

    def begin(self, step: int, batch: Sequence[TrainingGroup]) -> None:
        versions = [weighted.rollout.task.version for weighted in batch]
        advantages = [list(weighted.advantages) for weighted in batch]
        self.begun = step, versions, advantages
        self.borrower().withdraw()
        images, count = [len(values) for values in advantages], len(self.actors)
        trained = steps.trained_steps(self.run) if count > 1 else 1  # one rank learns all, whatever their number
        for rank in range(count):
            own = mini_batches.rank_groups(self.run, images, trained, step=step, rank=rank, ranks=count)
            held = {place: handle.reference for place in own if (handle := batch[place].rollout.trajectory)}
            size = sum(batch[place].rollout.bytes for place in held)
            self.running.append(self._ask(rank, "hold", held, size, awaited="the batch"))

    def updating(self) -> bool:
        return self.begun is not None

    def collect(self) -> Update | None:
        """Return the update once it is done (LearnerGroup).

        First every rank fetches the trajectories that it learns from: none begins where another could not.
        """
        if self.begun is None:
            return None
        try:
            if not all_answered(self.running):
                return None
        except Exception:
            self._forget_update()
            raise
        answers = [call.answer for call in self.running]
        if not self.held:
            lost = sorted({place for places in answers for place in places})
            if not lost:
                self.held = True
                self.running = self._ask_all("update", *self.begun, awaited="the update")
                return None
            self._forget_update()
            self._lend()  # the groups are sampled again, before anything is learned
            raise RolloutsLostError(f"the trajectories of {len(lost)} groups are gone", lost)
        self._forget_update()
        update: Update = answers[0]
        return update

    def _forget_update(self) -> None:
        self.begun, self.held, self.running = None, False, []

    def snapshot(self, *, averaged: bool) -> Stored:
        """Have the first rank put its weights, or their EMA, into the object store; the driver owns them."""
        with self._ranks_together():
            return self._snapshot(averaged)

    def _snapshot(self, averaged: bool) -> Stored:
        awaited = "the learner's weights"
        asked = self._ask(0, "weights", averaged, awaited=awaited, returns=1 + self._buckets())
        sharded = self.role.strategy == "fsdp2"
        helping = [
            self._ask(index, "assist", averaged, awaited=awaited) for index in range(1, len(self.actors)) if sharded
        ]
        return Stored(manifest=self._all([asked, *helping])[0], references=asked.references)

    def older(self, folder: RunFolder, step: int, version: int) -> Stored:
        """Put an older version into the object store, which the checkpoint of a step holds."""
        awaited, seconds = f"the weights of version {version}", self._disk_seconds()
        asked = self._ask(0, "older", folder.here(), step, version, awaited=awaited, returns=1 + self._buckets())
        return Stored(manifest=self._all([asked], seconds)[0], references=asked.references)

    def _buckets(self) -> int:
        if self.buckets is None:
            (self.buckets,) = self._all([self._ask(0, "buckets", awaited="the learner to be there")])
        return self.buckets

    def _disk_seconds(self, older: int = 0) -> float:
        """Return the seconds that a checkpoint may take: the ranks' own to write or read it, and as many to store it.

        So ranks that wait in vain can name the one that is late before the driver gives up on all.
        """
        (size,) = self._all([self._ask(0, "size", older, awaited="the learner to be there")])
        return 2 * checkpoints.seconds_for(2 * size)

    def save(self, folder: RunFolder, state: DriverState) -> None:
        saved, here, seconds = folder.checkpoint(state.step), folder.here(), self._disk_seconds(len(state.older))
        older = [list(self.versions[version, False].references) for version in state.older]
        count = len(self.actors) if self.role.strategy == "fsdp2" else 1
        with self._ranks_together():
            awaited = f"the learner to save {saved}"
            shares = [older, *[[]] * (count - 1)]
            asked = [self._ask(n, "save", here, state, own, awaited=awaited) for n, own in enumerate(shares)]
            self._all(asked, seconds)
        folder.check_saved(state.step)

    def restore(self, folder: RunFolder, step: int) -> DriverState:
        awaited, seconds = f"the learner to restore {folder.checkpoint_place(step)}", self._disk_seconds()
        asked = self._ask_all("restore", folder.here(), step, awaited=awaited)
        state: DriverState = self._all(asked, seconds)[0]
        return state

    def recover(self, serve: Callable[[], None]) -> None:
        self.head.wait()
        self.borrower().dismiss()
        self.close()
        self.versions.clear()
        self._start()
        deadline = time.monotonic() + self.workers.start_timeout
        while not self._ready_again():
            if time.monotonic() > deadline:
                raise LearnerLostError(
                    f"a new learner was not ready in {self.workers.start_timeout:g} s (workers.start_timeout)"
                )
            serve()
            ray.wait([beat.reference for beat in self.beats], timeout=1.0)

    def _ready_again(self) -> bool:
        """Do as `ready`; the learner has started before, so whatever fails its start now may be over the next time."""
        try:
            return self.ready()
        except ClusterError:
            raise
        except PcpoError as error:
            raise LearnerLostError(f"a new learner could not start: {error}") from error

    def lend(self, manifest: Manifest) -> None:
        """Lend the ranks to the samplers, once each has shown that it holds these weights; nothing if they only learn.

        Raises WeightsError where one holds others, and LearnerLostError.
        """
        if self.role.samples:
            self._all(self._ask_all("prove", manifest, awaited=f"the ranks to prove version {manifest.version}"))
            self._lend()

    def _lend(self) -> None:
        if self.role.samples:
            self.borrower().lend({f"learner-{index}": actor for index, actor in enumerate(self.actors)})

    @contextlib.contextmanager
    def _ranks_together(self) -> Iterator[None]:
        """Have ranks that need each other's parameters finish their tasks first; they are lent again afterwards.

        Otherwise one would wait in a collective, which has a deadline, while another samples.
        """
        if not (self.role.samples and self.role.strategy == "fsdp2" and self.borrower().status().lent):
            yield
            return
        self.borrower().withdraw()
        self._all(self._ask_all("idle", awaited="the ranks to finish their tasks"))
        yield
        self._lend()

    def leaving(self) -> bool:
        return any(node in self.draining for node in self.nodes.values())

    # -- for the stages ---------------------------------------------------------------------------------------------

    def references(self) -> list[ray.ObjectRef]:
        """Return the references to wait for."""
        return [call.reference for call in (*self.beats, *self.running)]

    def ready(self) -> bool:
        """Tell whether every rank has started. Raises LearnerLostError, or the error that its start raised."""
        self.listen()
        return not self.starting

    def listen(self) -> None:
        """Look for signs of life. Raises LearnerLostError where a rank is dead, or was silent for too long.

        Raises ClusterError where the cluster's head is.
        """
        self.head.listen()
        now = time.monotonic()
        if now - self.listened > DEAF:
            self.heard = [heard + now - self.listened for heard in self.heard]
        self.listened = now
        for index, beat in enumerate(self.beats):
            if beat.answered():
                _, self.nodes[index] = beat.answer
                self.starting.discard(index)
                self.heard[index] = now
                self.beats[index] = Call(partial(self.actors[index].alive.remote, BEAT), "the learner to live")
            silent = now - self.heard[index]
            if index not in self.starting and silent > self.workers.silence_timeout:
                raise LearnerLostError(
                    f"rank {index} of the learner was silent for {silent:.0f} s (workers.silence_timeout)"
                )

    def close(self) -> None:
        end(self.actors)
        self.placement.close()

    def _all(self, calls: Sequence[Call], seconds: float = 0.0) -> list[Any]:
        """Wait for the answers of ranks that wait for each other; the first failure is raised.

        Raises LearnerLostError where one dies, falls silent, or has not answered after workers.task_timeout, or after
        `seconds` where the work may take more.
        """
        limit = max(self.workers.task_timeout, seconds)
        deadline = time.monotonic() + limit
        while not all_answered(calls):
            if time.monotonic() > deadline:
                why = " (workers.task_timeout)" if limit > seconds else ", longer than so many bytes may take"
                raise LearnerLostError(f"waited {limit:.0f} s{why} for {calls[0].awaited}")
            ray.wait([call.reference for call in calls], num_returns=len(calls), timeout=0.5)
            self.listen()
        return [call.answer for call in calls]
