"""The learner's ranks, seen from the driver.

The driver calls for the weights, so the driver owns them: they survive the learner, and there is no store whose loss
could cost anything. Every call may be made twice: when a rank was out of reach for a moment, the driver asks for its
answer again, and the rank does not repeat the work.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from pcpo_ray.cluster.calls import Call, all_answered
from pcpo_ray.cluster.head import Head
from pcpo_ray.cluster.launch import Launcher
from pcpo_ray.cluster.pool import WorkerPool
from pcpo_ray.cluster.ranks import Ranks
from pcpo_ray.cluster.waiting import Waiter
from pcpo_ray.data.types import Rollout, Task
from pcpo_ray.data.updates import DriverState, TrainingGroup, Update
from pcpo_ray.data.weights import Manifest
from pcpo_ray.errors import ClusterError, LearnerLostError, PcpoError, RolloutsLostError
from pcpo_ray.models import steps
from pcpo_ray.runs import checkpoints
from pcpo_ray.runs.folder import RunFolder
from pcpo_ray.training.dispatcher import QUIET
from pcpo_ray.workers.learner import mini_batches


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A version that samplers can load: references to its manifest and its buckets, and the manifest itself."""

    references: Sequence[ray.ObjectRef]
    manifest: Manifest


ROOM = 5.0
"""Seconds for which a new learner waits for a place before other workers that have not started make room for it."""

Versions = dict[tuple[int, bool], Stored]
"""The weights that samplers can load, by version and whether it is the EMA."""


Samplers = WorkerPool[Task, Rollout]
"""The pool that ranks are lent to."""


class RayLearner:
    """The learner's rank actors. Where one is lost, silent or broken, `recover` replaces all: none goes on alone.

    `versions` are the published weights: a checkpoint holds those that its begun batches need. Ranks that sample too
    (workers.learner.samples) are lent to `borrower` between updates. Workers of `rivals` that have not started make
    room for a new learner.
    """

    def __init__(
        self,
        launcher: Launcher,
        versions: Versions,
        head: Head,
        borrower: Callable[[], Samplers],
        rivals: Callable[[], Sequence[WorkerPool[Any, Any]]],
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.launcher, self.head, self.say = launcher, head, say
        self.run = launcher.run
        self.role = launcher.run.workers.learner
        self.versions = versions
        self.borrower, self.rivals = borrower, rivals
        self.draining: set[str] = set()
        """Nodes that were told to leave."""
        self.begun: tuple[int, list[int], list[list[float]]] | None = None
        self.held = False
        """True once every rank holds the trajectories that it learns from."""
        self.running: list[Call] = []
        self._start()

    def _start(self) -> None:
        self._forget_update()
        self.buckets: int | None = None
        self.newest: tuple[int, bool] | None = None
        """The version, and whether it is the EMA, of which the first rank made a snapshot last."""
        self.ranks = Ranks(self.launcher, self.head)

    @property
    def actors(self) -> list[Any]:
        """The ranks' actors, by index."""
        return self.ranks.actors

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
            self.running.append(self.ranks.ask(rank, "hold", held, size, awaited="the batch"))

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
                self.running = self.ranks.ask_all("update", *self.begun, awaited="the update")
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
        asked = self.ranks.ask(0, "weights", averaged, awaited=awaited, returns=1 + self._buckets())
        others = range(1, len(self.actors)) if self.role.strategy == "fsdp2" else ()
        helping = [self.ranks.ask(index, "assist", averaged, awaited=awaited) for index in others]
        manifest: Manifest = self.ranks.answers([asked, *helping])[0]
        self.newest = manifest.key
        return Stored(manifest=manifest, references=asked.references)

    def snapshot_again(self, version: int, averaged: bool) -> Stored:
        """Put weights into the object store once more, also while the learner is at work on the next version.

        Raises LearnerLostError where it holds others by now.
        """
        at_work, key = self.updating(), (version, averaged)
        if at_work and key == self.newest:
            again = self.actors[0].again.options(num_returns=1 + self._buckets())
            asked = Call(again.remote, f"the weights of version {version}")
            return Stored(manifest=self.ranks.answers([asked])[0], references=asked.references)
        if not at_work and self.newest is not None and version == self.newest[0]:
            return self.snapshot(averaged=averaged)
        raise LearnerLostError(
            f"weights of version {version} are gone from the object store, and the learner has others by now"
        )

    def older(self, folder: RunFolder, step: int, version: int) -> Stored:
        """Put an older version into the object store, which the checkpoint of a step holds."""
        awaited, seconds = f"the weights of version {version}", self._disk_seconds()
        asked = self.ranks.ask(0, "older", folder.here(), step, version, awaited=awaited, returns=1 + self._buckets())
        return Stored(manifest=self.ranks.answers([asked], seconds)[0], references=asked.references)

    def _buckets(self) -> int:
        if self.buckets is None:
            (self.buckets,) = self.ranks.answers([self.ranks.ask(0, "buckets", awaited="the learner to be there")])
        return self.buckets

    def _disk_seconds(self, older: int = 0) -> float:
        """Return the seconds that a checkpoint may take: the ranks' own to write or read it, and as many to store it.

        So ranks that wait in vain can name the one that is late before the driver gives up on all.
        """
        (size,) = self.ranks.answers([self.ranks.ask(0, "size", older, awaited="the learner to be there")])
        return 2 * checkpoints.seconds_for(2 * size)

    def save(self, folder: RunFolder, state: DriverState) -> None:
        saved, here, seconds = folder.checkpoint(state.step), folder.here(), self._disk_seconds(len(state.older))
        older = [list(self.versions[version, False].references) for version in state.older]
        count = len(self.actors) if self.role.strategy == "fsdp2" else 1
        with self._ranks_together():
            awaited = f"the learner to save {saved}"
            shares = [older, *[[]] * (count - 1)]
            asked = [self.ranks.ask(n, "save", here, state, own, awaited=awaited) for n, own in enumerate(shares)]
            self.ranks.answers(asked, seconds)
        folder.check_saved(state.step)

    def restore(self, folder: RunFolder, step: int) -> DriverState:
        awaited, seconds = f"the learner to restore {folder.checkpoint_place(step)}", self._disk_seconds()
        asked = self.ranks.ask_all("restore", folder.here(), step, awaited=awaited)
        state: DriverState = self.ranks.answers(asked, seconds)[0]
        return state

    def recover(self, serve: Callable[[], None]) -> None:
        """Start anew (LearnerGroup). Raises ClusterError where the cluster has no place for the ranks in time."""
        self.head.wait()
        self.borrower().dismiss()
        self.versions.clear()
        self.restart()
        limit, told, waiter = self.launcher.run.workers.task_timeout, False, Waiter()
        rivals = list(self.rivals())
        with contextlib.ExitStack() as room:
            while not self._ready_again():
                waited = self.ranks.waiting()
                while waited > ROOM and rivals:  # one that had waited for a place may have got the lost learner's
                    room.enter_context(rivals.pop().only_started())
                if waited > QUIET and not told:
                    told = True
                    self.say(f"a new learner waits for a place: {self.ranks.room()}")
                if waited > limit:
                    raise ClusterError(
                        f"the cluster had no place for a new learner in {waited:.0f} s (workers.task_timeout={limit:g})"
                        f": {self.ranks.room()}; go on with --resume once it has"
                    )
                serve()
                waiter.wait(self.references(), timeout=1.0)

    def restart(self) -> None:
        """End all ranks, and ask for others."""
        self.close()
        self._start()

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
            awaited = f"the ranks to prove version {manifest.version}"
            self.ranks.answers(self.ranks.ask_all("prove", manifest, awaited=awaited))
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
        self.ranks.answers(self.ranks.ask_all("idle", awaited="the ranks to finish their tasks"))
        yield
        self._lend()

    def leaving(self) -> bool:
        return any(node in self.draining for node in self.ranks.nodes.values())

    # -- for the stages ---------------------------------------------------------------------------------------------

    def references(self) -> list[ray.ObjectRef]:
        """Return the references to wait for."""
        return [*self.ranks.references(), *(call.reference for call in self.running)]

    def ready(self) -> bool:
        """Tell whether every rank has started. Raises LearnerLostError, or the error that its start raised."""
        return self.ranks.ready()

    def listen(self) -> None:
        """Look for signs of life (Ranks.listen)."""
        self.ranks.listen()

    def close(self) -> None:
        self.ranks.close()
