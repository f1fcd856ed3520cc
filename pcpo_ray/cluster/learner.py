"""The learner's process seen from the driver, and the weights that it gives out.

The driver calls for the weights, so the driver owns them: they survive the learner, and there is no store whose loss
could cost anything.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray import exceptions

from pcpo_ray.cluster.actors import LearnerActor
from pcpo_ray.cluster.launch import BEAT, GONE, Launcher, brief, cause_of, end, reraise
from pcpo_ray.errors import ClusterError, WeightsError
from pcpo_ray.stages import LearnerLostError, Published, RolloutsLostError, State, Update, Weighted
from pcpo_ray.trajectory import Task


class RayLearner:
    """The learner actor, replaced by `recover` when it is lost."""

    def __init__(self, launcher: Launcher) -> None:
        self.launcher = launcher
        self.workers = launcher.run.workers
        self.versions: dict[tuple[int, bool], list[ray.ObjectRef]] = {}
        self.running: ray.ObjectRef | None = None
        self._start()

    def _start(self) -> None:
        self.actor, self.beat = self.launcher.start(LearnerActor, self.workers.learner, "learner")
        self.heard = time.monotonic()
        self.starting = True
        self.buckets: int | None = None

    # -- LearnerGroup -----------------------------------------------------------------------------------------------

    def begin(self, step: int, batch: Sequence[Weighted]) -> None:
        trajectories = [w.rollout.trajectory.reference for w in batch if w.rollout.trajectory is not None]
        versions = [weighted.rollout.task.version for weighted in batch]
        advantages = [list(weighted.advantages) for weighted in batch]
        self.running = self.actor.update.remote(step, versions, advantages, *trajectories)

    def collect(self) -> Update | None:
        if self.running is None or not ray.wait([self.running], timeout=0)[0]:
            return None
        reference, self.running = self.running, None
        update: Update = self._get(reference, "the update")
        return update

    def publish(self, *, oldest: int, averaged: bool = False) -> Published:
        started = time.perf_counter()
        if self.buckets is None:
            self.buckets = self._get(self.actor.buckets.remote(), "the learner to be there")
        references = self.actor.weights.options(num_returns=1 + self.buckets).remote(averaged)
        manifest = self._get(references[0], "the learner's weights")
        self.versions = {key: found for key, found in self.versions.items() if key[0] >= oldest}
        self.versions[manifest.key] = references
        return Published(
            version=manifest.version,
            averaged=manifest.averaged,
            checksum=manifest.checksum,
            bytes=sum(manifest.sizes),
            seconds=time.perf_counter() - started,
        )

    def save(self, folder: Path, state: State) -> None:
        self._get(self.actor.save.remote(folder.resolve(), state), f"the learner to save {folder}")

    def restore(self, folder: Path) -> State:
        state: State = self._get(self.actor.restore.remote(folder.resolve()), f"the learner to restore {folder}")
        return state

    def recover(self) -> None:
        end([self.actor])
        self.running = None
        self.versions.clear()
        self._start()
        deadline = time.monotonic() + self.workers.start_timeout
        while not self.ready():
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"a new learner was not ready in {self.workers.start_timeout:g} s (workers.start_timeout)"
                )
            ray.wait([self.beat], timeout=1.0)

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
        return [self.beat] if self.running is None else [self.beat, self.running]

    def ready(self) -> bool:
        """Whether it has started. Raises LearnerLostError, or what its start raised."""
        self.listen()
        return not self.starting

    def listen(self) -> None:
        """Hear whether it lives. Raises LearnerLostError where it does not, or was silent for too long."""
        now = time.monotonic()
        if ray.wait([self.beat], timeout=0)[0]:
            self._get(self.beat, "the learner to live")
            self.starting, self.heard = False, now
            self.beat = self.actor.alive.remote(BEAT)
        silent = now - self.heard
        if not self.starting and silent > self.workers.silence_timeout:
            raise LearnerLostError(f"the learner was silent for {silent:.0f} s (workers.silence_timeout)")

    def close(self) -> None:
        end([self.actor])

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
            raise reraise(error, awaited) from error
