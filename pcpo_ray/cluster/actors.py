"""Actors: thin shells around sampler and scorer, which run in the workers' processes (the learner's: learner_actor.py).

Every actor is fully usable once `start` is done: a sampler pulls the weights that its next task names by itself, so a
late joiner, a replacement and an ordinary update are one code path. `start` is not `__init__`: Ray hands on the error
that a method raises, and of an `__init__` only the text of its traceback. Imports stand in the actors that need them: a
scorer never imports diffusers.
"""

import gc
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import ray

from pcpo_ray import config
from pcpo_ray.cluster.pulling import pulled_weights
from pcpo_ray.data import weights
from pcpo_ray.data.types import Task
from pcpo_ray.process import signals
from pcpo_ray.workers import memory

if TYPE_CHECKING:
    import torch

    from pcpo_ray.workers.packing import PackedTrajectory
    from pcpo_ray.workers.sampler import Sampler

HEALTH = "health"
"""The concurrency group of `alive`: it answers while the actor works."""


class Worker(ABC):
    """The base of every actor: its process's settings, and a sign of life."""

    def __init__(self, run: config.Run, name: str, search_path: str) -> None:
        self.run, self.name = run, name
        self.loaded = False
        signals.elsewhere()
        sys.path.insert(0, search_path)
        if os.path.isdir(search_path):  # for what classes of the user's own open; another machine may not have it
            os.chdir(search_path)

    def __repr__(self) -> str:
        """Name the actor in Ray's dashboard and logs."""
        return f"{self.run.name}: {self.name}"

    def start(self) -> tuple[int, str]:
        """Load what the role needs, once; return what `alive` returns."""
        if not self.loaded:
            gc.disable()  # it would go through all that imports make, again and again: an eighth of their time
            try:
                self.load()
            finally:
                gc.enable()
            self.loaded = True
        found: tuple[int, str] = self.alive(0.0)
        return found

    @ray.method(concurrency_group=HEALTH)  # type: ignore[untyped-decorator]
    def inject_fault(self, number: int) -> None:
        """Send this process a signal, as a fault would."""
        os.kill(os.getpid(), number)

    @abstractmethod
    def load(self) -> None:
        """Load what the role needs."""

    def setup_device(self, role: config.Role | config.LearnerRole) -> "torch.device":
        """Set the process up for its part of the machine; return the device to compute on."""
        if role.gpus == 0:  # Ray shows all GPUs to an actor with none
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        import torch

        torch.set_num_threads(role.threads)
        from pcpo_ray.data.tensors import device_here

        return device_here()

    @ray.method(concurrency_group=HEALTH)  # type: ignore[untyped-decorator]
    def alive(self, seconds: float) -> tuple[int, str]:
        """Return the ids of the process and its node, after so many seconds. A death fails the call at once."""
        time.sleep(seconds)
        return os.getpid(), ray.get_runtime_context().get_node_id()

    def peak(self) -> memory.Peak:
        """Return the most memory that the process has had."""
        return memory.peak()


@dataclass(frozen=True, kw_only=True)
class SampleReport:
    """The small facts about a sampled group, which travel beside the group itself."""

    bytes: int
    checksum: str
    seconds: float
    worker: str
    lent: bool


class SamplingWorker(Worker):
    """The base of the actors that sample: samplers, and the learner's ranks where they are lent to the samplers."""

    sampler: "Sampler"
    lent = False
    """True for a rank of the learner."""

    def sample(
        self, task: Task, checksum: str, pulled: Sequence[ray.ObjectRef]
    ) -> "tuple[SampleReport, PackedTrajectory | None, np.ndarray]":
        """Sample a group with the weights of this checksum; of the three objects the driver opens only the first.

        `pulled` are the references of the weights' manifest and buckets, in a list, so that Ray hands them on unopened.
        They are opened here, between two tasks, if they are not loaded yet. The checksum decides, not the version: a
        new learner counts versions anew. Raises WeightsGoneError.
        """
        from pcpo_ray.workers.packing import pack_trajectory

        started = time.perf_counter()
        if not self.sampler.holds(checksum):
            self.pull(task.version, pulled)
        self.sampler.prepare(task)
        trajectory, images = self.sampler.sample(task)
        packed = None if trajectory is None else pack_trajectory(self.sampler.policy, task, trajectory)
        made = SampleReport(
            bytes=images.nbytes + (0 if packed is None else packed.bytes),
            checksum=self.sampler.loaded or "",
            seconds=time.perf_counter() - started,
            worker=self.name,
            lent=self.lent,
        )
        return made, packed, images

    def pull(self, version: int, pulled: Sequence[ray.ObjectRef]) -> str:
        """Load a version's weights from the object store; return their checksum. Raises WeightsGoneError."""
        return self.sampler.load(pulled_weights(version, pulled))


class SamplerActor(SamplingWorker):
    """A sampler's process."""

    def load(self) -> None:
        device = self.setup_device(self.run.workers.samplers)
        from pcpo_ray.workers.sampler import Sampler

        self.sampler = Sampler(self.run, device)

    def ping(self) -> None:
        """Answer between tasks: an idle sampler does so at once."""

    def receive(
        self, address: tuple[str, int], place: int, size: int, deadline: float, manifest: Sequence[ray.ObjectRef]
    ) -> None:
        """Load the weights that the learner sends to the `size` processes that meet at the address."""
        import torch

        from pcpo_ray.workers.learner import distributed

        (sent,) = ray.get(list(manifest), timeout=deadline)
        group = distributed.Sync(
            index=place, count=size, address=address, timeout=deadline, device=self.sampler.policy.device
        )
        buckets = [group.broadcast(torch.empty(bucket, dtype=torch.uint8)).numpy() for bucket in sent.sizes]
        self.sampler.load(weights.WeightSnapshot(manifest=sent, buckets=tuple(buckets)))


class ScorerActor(Worker):
    """A scorer's process."""

    def load(self) -> None:
        device = self.setup_device(self.run.workers.scorers)
        from pcpo_ray.workers.scorer import Scorer

        self.scorer = Scorer(self.run, device)

    def start(self, prompts: Sequence[str] = ()) -> tuple[int, str]:
        """Load the rewards, and ask them about two of the prompts, if some are given."""
        found = super().start()
        if prompts:
            self.scorer.ask(prompts, self.run.workers.start_timeout / 2)  # so that its own error is told first
        return found

    def score(self, task: Task, images: np.ndarray) -> dict[str, Any]:
        """Score a group: what a `Scored` holds beside its rollout, by name."""
        started = time.perf_counter()
        scores, failures, measured = self.scorer.score(task, images)
        found = {"scores": scores, "failures": failures, "measured": measured}
        found |= {"described": self.scorer.describe(task, images), "tokens": self.scorer.tokens()}
        return {**found, "seconds": time.perf_counter() - started}
