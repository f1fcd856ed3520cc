"""Thin shells around the stages: what runs in the workers' processes.

A restarted actor runs `__init__` alone, so each is fully usable after it: a sampler pulls the weights that its next
task names by itself. Imports stand in the actors that need them: a scorer never imports diffusers.
"""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

from pcpo_ray import config
from pcpo_ray.errors import WeightsError
from pcpo_ray.stages import Published, State, Update
from pcpo_ray.trajectory import Task, Trajectory

PULL_TIMEOUT = 600.0
"""Seconds in which a version's weights must be with whoever asks for them."""


def _settle(threads: int, gpus: float, search_path: str) -> Any:
    """Give the process its threads and the folder of the user's own classes, and hide GPUs it has not reserved.

    Ray shows all GPUs to an actor with none.
    """
    sys.path.insert(0, search_path)
    if gpus == 0:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch

    torch.set_num_threads(threads)
    from pcpo_ray.policy import device_here

    return device_here()


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a sampler says of a group, beside the group itself."""

    checksum: str
    seconds: float
    worker: str


class WeightStore:
    """Versions of the weights, pulled by samplers. It calls the learner, so it owns what the learner returns, and
    the weights outlive the learner. The last two versions stay."""

    def __init__(self, gpus: float) -> None:
        self.versions: dict[tuple[int, bool], ray.ObjectRef] = {}

    def ready(self) -> int:
        return os.getpid()

    def publish(self, learner: Any, averaged: bool) -> Published:
        """Take the learner's current weights, or their running mean."""
        started = time.perf_counter()
        reference = learner.weights.remote(averaged)
        weights = ray.get(reference, timeout=PULL_TIMEOUT)
        self.versions[weights.key] = reference
        for key in [key for key in self.versions if key[0] < weights.version - 1]:
            del self.versions[key]
        return Published(
            version=weights.version,
            averaged=weights.averaged,
            checksum=weights.checksum,
            bytes=weights.buffer.nbytes,
            seconds=time.perf_counter() - started,
        )

    def find(self, key: tuple[int, bool]) -> list[ray.ObjectRef]:
        """Those weights' reference, in a list so that Ray hands on the reference and not the weights."""
        if key not in self.versions:
            raise WeightsError(f"asked for (version, averaged) {key}; the store holds {sorted(self.versions)}")
        return [self.versions[key]]


class SamplerActor:
    """A sampler's process; `store` names the weight store."""

    def __init__(self, run: config.Run, name: str, store: str, search_path: str, gpus: float) -> None:
        device = _settle(run.workers.samplers.threads, gpus, search_path)
        from pcpo_ray.sampler import Sampler

        self.sampler = Sampler(run, device)
        self.name = name
        self.store = ray.get_actor(store)
        self.checksum = ""

    def ready(self) -> int:
        return os.getpid()

    def sample(self, task: Task) -> tuple[Made, dict[str, Any] | None, np.ndarray]:
        """A group, with the weights of the task's version; three objects, of which the driver opens the first only."""
        started = time.perf_counter()
        if self.sampler.loaded != task.weights:
            (reference,) = ray.get(self.store.find.remote(task.weights), timeout=PULL_TIMEOUT)
            self.checksum = self.sampler.load(ray.get(reference, timeout=PULL_TIMEOUT))
        trajectory, images = self.sampler.sample(task)
        made = Made(checksum=self.checksum, seconds=time.perf_counter() - started, worker=self.name)
        return made, None if trajectory is None else trajectory.to_numpy(), images


class ScorerActor:
    """A scorer's process."""

    def __init__(self, run: config.Run, search_path: str, gpus: float) -> None:
        device = _settle(run.workers.scorers.threads, gpus, search_path)
        from pcpo_ray.scorer import Scorer

        self.scorer = Scorer(run, device)

    def ready(self) -> int:
        return os.getpid()

    def score(self, task: Task, images: np.ndarray) -> tuple[dict[str, list[float]], dict[str, str], float]:
        """Scores, causes of missing ones, and seconds."""
        started = time.perf_counter()
        scores, failures = self.scorer.score(task, images)
        return scores, failures, time.perf_counter() - started


class LearnerActor:
    """A learner's process."""

    def __init__(self, run: config.Run, search_path: str, gpus: float) -> None:
        device = _settle(run.workers.learner.threads, gpus, search_path)
        from pcpo_ray.learner import Learner

        self.learner = Learner(run, device)

    def ready(self) -> int:
        return os.getpid()

    def update(
        self, step: int, versions: list[int], advantages: list[list[float]], *trajectories: dict[str, Any]
    ) -> Update:
        """Learn a batch; the trajectories come as references that Ray has resolved."""
        opened = [Trajectory.from_numpy(data) for data in trajectories]
        return self.learner.update(step, list(zip(versions, opened, advantages, strict=True)))

    def weights(self, averaged: bool) -> Any:
        return self.learner.weights(averaged=averaged)

    def save(self, folder: Path, state: State) -> None:
        self.learner.save(folder, state)

    def restore(self, folder: Path) -> State:
        return self.learner.restore(folder)
