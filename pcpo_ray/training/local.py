"""The stages in this process: for tests, debugging, and one GPU. Work is done while it is waited for.

The sampler has no network of its own: the learner lends it one (workers/learner/lent.py).
"""

import math
import time
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
import torch

from pcpo_ray import config
from pcpo_ray.data import weights
from pcpo_ray.data.records import PoolStatus, RunStatus
from pcpo_ray.data.requests import Fault, Request
from pcpo_ray.data.tensors import device_here
from pcpo_ray.data.types import Handle, Rollout, Scored, Task
from pcpo_ray.data.updates import DriverState, Published, TrainingGroup, Update
from pcpo_ray.errors import ClusterError, TrainingError
from pcpo_ray.rewards import probes
from pcpo_ray.runs import checkpoints
from pcpo_ray.runs.folder import RunFolder
from pcpo_ray.training.scheduling.workers import Note
from pcpo_ray.workers.learner.learner import Learner
from pcpo_ray.workers.learner.lent import LentSampler
from pcpo_ray.workers.scorer import Scorer

Versions = dict[tuple[int, bool], weights.WeightSnapshot]
"""The weights that samplers can load, by version and whether it is the EMA."""


class LocalSamplers:
    """One sampler, on the learner's network, which loads the version that a task names."""

    def __init__(self, run: config.Run, sampler: LentSampler, versions: Versions) -> None:
        self.sampler = sampler
        self.threads = run.workers.samplers.threads
        self.tasks: deque[Task] = deque()
        self.done: list[Rollout] = []
        self.versions = versions

    def submit(self, task: Task) -> None:
        if task.weights not in self.versions:
            raise TrainingError(
                f"task asks for (version, averaged) {task.weights}; published are {sorted(self.versions)}"
            )
        self.tasks.append(task)

    def collect(self) -> list[Rollout]:
        finished, self.done = self.done, []
        return finished

    def lost(self) -> list[Task]:
        return []

    def cancel(self) -> None:
        self.tasks.clear()
        self.done.clear()

    def work(self) -> bool:
        """Do one task; False if there is none."""
        if not self.tasks:
            return False
        started = time.perf_counter()
        task = self.tasks.popleft()
        torch.set_num_threads(self.threads)
        wanted = self.versions[task.weights]
        if not self.sampler.holds(wanted.manifest.checksum):
            self.sampler.load(wanted)
        self.sampler.prepare(task)
        trajectory, images = self.sampler.sample(task)
        self.done.append(
            Rollout(
                task=task,
                trajectory=None if trajectory is None else Handle(reference=trajectory),
                images=Handle(reference=images),
                bytes=images.nbytes + (0 if trajectory is None else trajectory.bytes),
                checksum=self.sampler.loaded or "",
                seconds=time.perf_counter() - started,
                worker="sampler-0",
            )
        )
        return True


class LocalScorers:
    """One scorer."""

    def __init__(self, run: config.Run, device: torch.device) -> None:
        self.scorer = Scorer(run, device)
        self.threads = run.workers.scorers.threads
        self.rollouts: deque[Rollout] = deque()
        self.done: list[Scored] = []

    def submit(self, rollout: Rollout) -> None:
        self.rollouts.append(rollout)

    def collect(self) -> list[Scored]:
        finished, self.done = self.done, []
        return finished

    def lost(self) -> list[Rollout]:
        return []

    def cancel(self) -> None:
        self.rollouts.clear()
        self.done.clear()

    def work(self) -> bool:
        """Score one rollout; False if there is none."""
        if not self.rollouts:
            return False
        started = time.perf_counter()
        rollout = self.rollouts.popleft()
        torch.set_num_threads(self.threads)
        scores, failures, measured = self.scorer.score(rollout.task, rollout.images.reference)
        described = self.scorer.describe(rollout.task, rollout.images.reference)
        seconds = time.perf_counter() - started
        self.done.append(
            Scored(
                rollout=rollout,
                scores=scores,
                failures=failures,
                seconds=seconds,
                measured=measured,
                described=described,
                tokens=self.scorer.tokens(),
            )
        )
        return True


class LocalLearner:
    """One learner, in lock-step with nobody."""

    def __init__(self, run: config.Run, device: torch.device, versions: Versions) -> None:
        self.learner = Learner(run, device)
        self.threads = run.workers.learner.threads
        self.versions = versions
        self.max_staleness = run.rollout.max_staleness
        self.begun: tuple[int, Sequence[TrainingGroup]] | None = None
        self.done: Update | None = None

    def begin(self, step: int, batch: Sequence[TrainingGroup]) -> None:
        self.begun = (step, batch)

    def updating(self) -> bool:
        return self.begun is not None or self.done is not None

    def collect(self) -> Update | None:
        finished, self.done = self.done, None
        return finished

    def work(self) -> bool:
        """Do the update begun; False if there is none."""
        if self.begun is None:
            return False
        step, batch = self.begun
        self.begun = None
        torch.set_num_threads(self.threads)
        opened = []
        for weighted in batch:
            assert weighted.rollout.trajectory is not None
            opened.append((weighted.rollout.task.version, weighted.rollout.trajectory.reference, weighted.advantages))
        self.done = self.learner.update(step, opened)
        return True

    def leaving(self) -> bool:
        return False

    def save(self, folder: RunFolder, state: DriverState) -> None:
        folder.check()
        older = [self.versions[version, False] for version in state.older]
        self.learner.save(folder.checkpoint(state.step), state, older=older, allowed=folder.check)
        folder.push_checkpoint(state.step)

    def restore(self, folder: RunFolder, step: int) -> DriverState:
        state = self.learner.restore(folder.fetch_checkpoint(step))
        self.max_staleness = max(self.max_staleness, state.max_staleness or 0)
        return state

    def recover(self, serve: Callable[[], None]) -> None:
        """Do nothing: in one process nothing is lost but the process."""


class LocalStages:
    """The three stages in this process. `phase` is told what is being loaded."""

    def __init__(self, run: config.Run, phase: Callable[[str], None] = lambda text: None) -> None:
        device = device_here()
        self.versions: Versions = {}
        phase("loading the rewards, and trying them")
        self.scorers = LocalScorers(run, device)
        self.scorers.scorer.ask(probes.prompts_to_ask(run))
        phase("loading the model")
        self.learner = LocalLearner(run, device, self.versions)
        self.samplers = LocalSamplers(run, self.learner.learner.lend(), self.versions)

    def wait(self, timeout: float) -> None:
        """Do one unit of work: the learner's first, as the driver waits for it last."""
        _ = self.learner.work() or self.scorers.work() or self.samplers.work()

    def publish(self, *, oldest: int, averaged: bool = False) -> Published:
        """Make weights loadable. They are copied only if the network will hold others when they are sampled with."""
        started = time.perf_counter()
        learner = self.learner.learner
        if averaged or self.learner.max_staleness:
            snapshot = learner.weights(averaged=averaged)
        else:
            snapshot = weights.WeightSnapshot(manifest=learner.manifest(), buckets=())
        if not averaged:
            learner.prove(snapshot.manifest)
        return self._published(snapshot, oldest, started)

    def publish_lost(self, version: int, averaged: bool) -> Published:
        raise TrainingError(f"weights of version {version} are gone, which cannot be: they are in this process")

    def republish(self, folder: RunFolder, step: int, version: int) -> Published:
        started = time.perf_counter()
        return self._published(checkpoints.read_version(folder.fetch_checkpoint(step), version), 0, started)

    def _published(self, snapshot: weights.WeightSnapshot, oldest: int, started: float) -> Published:
        self.versions[snapshot.manifest.key] = snapshot
        for key in [key for key in self.versions if key[0] < oldest]:
            del self.versions[key]
        return Published(
            version=snapshot.manifest.version,
            averaged=snapshot.manifest.averaged,
            checksum=snapshot.manifest.checksum,
            bytes=sum(snapshot.manifest.sizes),
            seconds=time.perf_counter() - started,
        )

    def rollout_budget(self) -> float:
        return math.inf  # a batch is learned before the next is begun, but for rollout.max_staleness

    def fetch(self, handle: Handle) -> np.ndarray:
        images: np.ndarray = handle.reference
        return images if handle.rows is None else images[handle.rows]

    def resize(self, *, samplers: int | None = None, scorers: int | None = None) -> None:
        raise ClusterError("a run in one process has one sampler and one scorer; train on Ray (without --local)")

    def pool_status(self) -> dict[str, PoolStatus]:
        names = {"samplers": "sampler-0", "scorers": "scorer-0"}
        return {role: PoolStatus(wanted=1, ready=1, workers=(name,)) for role, name in names.items()}

    def inject_fault(self, fault: Fault) -> None:
        raise ClusterError(f"a run in one process has no {fault} to lose; train on Ray (without --local)")

    def exchange(self, status: RunStatus) -> list[Request]:
        return []

    def end(self, status: RunStatus) -> None:
        """Return at once, as nobody watches."""

    def faults(self) -> list[str]:
        return []

    def notes(self) -> list[Note]:
        return []

    def close(self) -> None:
        """Do nothing, as nothing outlives this process."""
