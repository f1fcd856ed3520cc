"""The learner's ranks seen from the driver, and the weights that they give out.

The driver calls for the weights, so the driver owns them: they survive the learner, and there is no store whose loss
could cost anything.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray import exceptions

from pcpo_ray import minibatches
from pcpo_ray.cluster import broadcast
from pcpo_ray.cluster.actors import LearnerActor
from pcpo_ray.cluster.launch import BEAT, GONE, Launcher, brief, cause_of, end, reraise
from pcpo_ray.errors import ClusterError, PcpoError, WeightsError
from pcpo_ray.folder import RunFolder
from pcpo_ray.stages import LearnerLostError, Published, RolloutsLostError, State, Update, Weighted
from pcpo_ray.trajectory import Task


class RayLearner:
    """The learner's rank actors. One lost, silent or broken, and `recover` replaces all: no rank goes on alone."""

    def __init__(self, launcher: Launcher) -> None:
        self.launcher = launcher
        self.run = launcher.run
        self.workers = launcher.run.workers
        self.role = launcher.run.workers.learner
        self.versions: dict[tuple[int, bool], list[ray.ObjectRef]] = {}
        self.running: list[ray.ObjectRef] = []
        self.receivers: Callable[[], Mapping[str, Any]] = dict
        """The samplers to send new weights to, by name, where they do not pull them."""
        self.mended: list[str] = []
        self._start()

    def _start(self) -> None:
        self.room = self.launcher.room(self.role)
        self.actors = [
            self.launcher.make(LearnerActor, self.role, f"learner-{index}", index, **self.room.options(index))
            for index in range(self.role.ranks)
        ]
        if len(self.actors) == 1:
            self.beats = [self.actors[0].start.remote()]
        else:
            address = self.actors[0].meet.remote()
            self.beats = [actor.start_with.remote(address) for actor in self.actors]
        self.heard = [time.monotonic()] * len(self.actors)
        self.starting = set(range(len(self.actors)))
        self.buckets: int | None = None

    # -- LearnerGroup -----------------------------------------------------------------------------------------------

    def begin(self, step: int, batch: Sequence[Weighted]) -> None:
        versions = [weighted.rollout.task.version for weighted in batch]
        advantages = [list(weighted.advantages) for weighted in batch]
        parts = minibatches.of(self.run.optimizer, len(batch), seed=self.run.seed, step=step)
        for index, actor in enumerate(self.actors):
            own = sorted({place for part in parts for place in minibatches.share(part, index, len(self.actors))})
            trajectories = [handle.reference for place in own if (handle := batch[place].rollout.trajectory)]
            self.running.append(actor.update.remote(step, versions, advantages, own, *trajectories))

    def collect(self) -> Update | None:
        done, busy = ray.wait(self.running, num_returns=len(self.running), timeout=0) if self.running else ([], [])
        updates = [self._get(reference, "the update") for reference in done]  # the first that failed is known at once
        if busy or not updates:
            return None
        self.running = []
        update: Update = updates[0]
        return update

    def publish(self, *, oldest: int, averaged: bool = False) -> Published:
        started = time.perf_counter()
        first, *others = self.actors
        if self.buckets is None:
            self.buckets = self._get(first.buckets.remote(), "the learner to be there")
        references = first.weights.options(num_returns=1 + self.buckets).remote(averaged)
        if self.role.strategy == "fsdp2":
            self._all([references[0], *(actor.assist.remote(averaged) for actor in others)], "the learner's weights")
        manifest = self._get(references[0], "the learner's weights")
        self.versions = {key: found for key, found in self.versions.items() if key[0] >= oldest}
        self.versions[manifest.key] = references
        received: list[str] = []
        if self.workers.sync == "broadcast" and not averaged:
            received, failed = broadcast.send(first, references[0], self.receivers(), broadcast.DEADLINE)
            self.mended += failed
        return Published(
            version=manifest.version,
            averaged=manifest.averaged,
            checksum=manifest.checksum,
            bytes=sum(manifest.sizes),
            seconds=time.perf_counter() - started,
            received=tuple(received),
        )

    def save(self, folder: RunFolder, state: State) -> None:
        writers = self.actors if self.role.strategy == "fsdp2" else self.actors[:1]
        saved = folder.checkpoint(state.step)
        self._all([actor.save.remote(folder.here(), state) for actor in writers], f"the learner to save {saved}")
        if folder.url is None and not saved.exists():
            raise ClusterError(
                f"the learner saved {saved.resolve()} on its own node, and it is not on this one; have runs lie on "
                "storage that all nodes share (--runs with a mounted path, or a URL such as s3://bucket/runs), or the "
                "learner on the node where you start it (workers.learner)"
            )

    def restore(self, folder: RunFolder, step: int) -> State:
        asked = [actor.restore.remote(folder.here(), step) for actor in self.actors]
        state: State = self._all(asked, f"the learner to restore {folder.checkpoint_place(step)}")[0]
        return state

    def recover(self) -> None:
        self.close()
        self.running = []
        self.versions.clear()
        self._start()
        deadline = time.monotonic() + self.workers.start_timeout
        while not self.ready():
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"a new learner was not ready in {self.workers.start_timeout:g} s (workers.start_timeout)"
                )
            ray.wait(self.beats, timeout=1.0)

    # -- for the stages ---------------------------------------------------------------------------------------------

    def pulled(self, task: Task) -> list[ray.ObjectRef]:
        """What a sampler opens to load the weights of a task. Raises WeightsError."""
        if task.weights not in self.versions:
            raise WeightsError(
                f"a task asks for (version, averaged) {task.weights}; published are {sorted(self.versions)}"
            )
        return self.versions[task.weights]

    def references(self) -> list[ray.ObjectRef]:
        """What to wait for."""
        return [*self.beats, *self.running]

    def ready(self) -> bool:
        """Whether every rank has started. Raises LearnerLostError, or what its start raised."""
        self.listen()
        return not self.starting

    def listen(self) -> None:
        """Hear whether they live. Raises LearnerLostError where one does not, or was silent for too long."""
        now = time.monotonic()
        for index, beat in enumerate(self.beats):
            if ray.wait([beat], timeout=0)[0]:
                self._get(beat, "the learner to live")
                self.starting.discard(index)
                self.heard[index] = now
                self.beats[index] = self.actors[index].alive.remote(BEAT)
            silent = now - self.heard[index]
            if index not in self.starting and silent > self.workers.silence_timeout:
                raise LearnerLostError(
                    f"rank {index} of the learner was silent for {silent:.0f} s (workers.silence_timeout)"
                )

    def faults(self) -> list[str]:
        """What failed and was mended since the last call."""
        mended, self.mended = self.mended, []
        return mended

    def close(self) -> None:
        end(self.actors)
        self.room.close()

    def _all(self, references: Sequence[ray.ObjectRef], awaited: str) -> list[Any]:
        """The answers of ranks that wait for each other: the first to fail is the one that is heard."""
        left, deadline = list(references), time.monotonic() + self.workers.task_timeout
        while left:
            done, left = ray.wait(left, timeout=max(0.0, deadline - time.monotonic()))
            if not done:
                raise ClusterError(f"waited {self.workers.task_timeout:g} s (workers.task_timeout) for {awaited}")
            self._get(done[0], awaited)
        return [self._get(reference, awaited) for reference in references]

    def _get(self, reference: ray.ObjectRef, awaited: str) -> Any:
        try:
            return ray.get(reference, timeout=self.workers.task_timeout)
        except exceptions.GetTimeoutError:
            raise ClusterError(f"waited {self.workers.task_timeout:g} s (workers.task_timeout) for {awaited}") from None
        except exceptions.RayError as error:
            cause = cause_of(error)
            if isinstance(cause, exceptions.ObjectLostError):
                raise RolloutsLostError(f"trajectories are gone: {brief(cause)}") from error
            if isinstance(cause, GONE):
                raise LearnerLostError(f"the learner is gone: {brief(cause)}") from error
            if len(self.actors) > 1 and not isinstance(cause, PcpoError):
                # torch.distributed says of a rank that it lost another in errors of no class of their own
                raise LearnerLostError(f"a rank of the learner failed: {brief(cause)}") from error
            raise reraise(error, awaited) from error
