"""Actors: thin shells around sampler, scorer and learner, which run in the workers' processes.

Every actor is fully usable once `start` is done: a sampler pulls the weights that its next task names by itself, so a
late joiner, a replacement and an ordinary update are one code path. `start` is not `__init__`: Ray hands on the error
that a method raises, and of an `__init__` only the text of its traceback. Imports stand in the actors that need them: a
scorer never imports diffusers.
"""

import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from ray import exceptions

from pcpo_ray import config
from pcpo_ray.cluster.pulling import pulled_weights, seconds_to_pull
from pcpo_ray.data import weights
from pcpo_ray.data.types import Task
from pcpo_ray.data.updates import DriverState, Update
from pcpo_ray.data.weights import Manifest
from pcpo_ray.process import signals
from pcpo_ray.workers import memory

if TYPE_CHECKING:
    import torch

    from pcpo_ray.runs.folder import RunFolder
    from pcpo_ray.workers.learner.distributed import Rank
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
            self.load()
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
            self.scorer.ask(prompts)
        return found

    def score(
        self, task: Task, images: np.ndarray
    ) -> tuple[dict[str, list[float]], dict[str, str], Mapping[str, np.ndarray], dict[str, dict[str, int]], float]:
        """Score a group: scores, causes of missing ones, measurements for quality, judges' tokens, and seconds."""
        started = time.perf_counter()
        scores, failures, measured = self.scorer.score(task, images)
        return scores, failures, measured, self.scorer.tokens(), time.perf_counter() - started


class LearnerActor(SamplingWorker):
    """The process of one of the learner's ranks; `index` is its place among them."""

    lent = True

    def __init__(self, run: config.Run, name: str, search_path: str, index: int) -> None:
        super().__init__(run, name, search_path)
        self.index = index
        self.rank: "Rank | None" = None
        self.snapshot: weights.WeightSnapshot | None = None
        self.stores: dict[str, Any] = {}
        self.batch: dict[int, PackedTrajectory] = {}
        self.number, self.answer = 0, None
        self.failure: Exception | None = None

    def meet(self, purpose: str) -> tuple[str, int]:
        """Open a store where processes can meet, and return its address; it closes when the purpose's next one opens.

        The store of the ranks stays as long as they do: NCCL meets there at the first collective, and not before.
        """
        from pcpo_ray.workers.learner import distributed

        self.stores[purpose] = store = distributed.host(ray.util.get_node_ip_address())
        return store.host, store.port

    def call(self, number: int, name: str, *arguments: Any) -> Any:
        """Call a method: return its answer, or raise its error. The same number does so again, with nothing done twice.

        An update that has failed must not begin once more, nor ranks that have met.
        """
        if number != self.number:
            self.number, self.answer, self.failure = number, None, None
            try:
                self.answer = getattr(self, name)(*arguments)
            except Exception as error:
                self.failure = error
        if self.failure is not None:
            raise self.failure
        return self.answer

    def start_with(self, address: tuple[str, int]) -> tuple[int, str]:
        """Meet the other ranks, then `start`."""
        from pcpo_ray.workers.learner import distributed

        role = self.run.workers.learner
        self.rank = distributed.join(
            index=self.index,
            count=role.ranks,
            sharded=role.strategy == "fsdp2",
            address=address,
            start=self.run.workers.start_timeout,
            timeout=role.timeout,
            device=self.setup_device(role),
        )
        return self.start()

    def load(self) -> None:
        device = self.setup_device(self.run.workers.learner)
        from pcpo_ray.workers.learner.learner import ALONE, Learner

        self.learner = Learner(self.run, device, self.rank or ALONE)
        if self.run.workers.learner.samples:
            self.sampler = self.learner.lend()

    def sample(
        self, task: Task, checksum: str, pulled: Sequence[ray.ObjectRef]
    ) -> "tuple[SampleReport, PackedTrajectory | None, np.ndarray]":
        """Sample a group with the learner's network, and as many threads as a sampler."""
        import torch

        torch.set_num_threads(self.run.workers.samplers.threads)
        try:
            return super().sample(task, checksum, pulled)
        finally:
            torch.set_num_threads(self.run.workers.learner.threads)

    def prove(self, manifest: Manifest) -> str:
        """Show that this rank's network holds these weights, and can be sampled with; all ranks are asked together."""
        return self.learner.prove(manifest)

    def idle(self) -> None:
        """Answer once every task that this rank was given is done."""

    def hold(self, references: Mapping[int, ray.ObjectRef], size: int) -> list[int]:
        """Fetch the trajectories that this rank learns from, by the groups' places; return the places of lost ones.

        `size` is an upper bound of their bytes.
        """
        self.batch, lost = {}, []
        if references:  # all at once: each comes from the node that made it
            ray.wait(list(references.values()), num_returns=len(references), timeout=seconds_to_pull(size))
        for place, reference in references.items():
            try:
                self.batch[place] = ray.get(reference, timeout=0)
            except (exceptions.ObjectLostError, exceptions.GetTimeoutError):
                lost.append(place)
        return lost

    def update(self, step: int, versions: list[int], advantages: list[list[float]]) -> Update:
        """Learn a batch, of which this rank holds its own groups' trajectories."""
        packed, self.batch = self.batch, {}
        every = enumerate(zip(versions, advantages, strict=True))
        return self.learner.update(step, [(version, packed.get(place), values) for place, (version, values) in every])

    def buckets(self) -> int:
        """Count the buckets that the weights are sent in."""
        return self.learner.buckets()

    def size(self, older: int) -> int:
        """Return the bytes of a checkpoint with so many older versions."""
        return self.learner.size(older)

    def weights(self, averaged: bool) -> tuple[Manifest, *tuple[np.ndarray, ...]]:
        """Make a snapshot: the manifest and its buckets, each an object of its own. Only the first rank is asked.

        Ray has copied the snapshot before, and its broadcast has ended, so its memory is free.
        """
        self.snapshot = self.learner.weights(averaged=averaged, over=self.snapshot)
        return self.snapshot.manifest, *self.snapshot.buckets

    def send(self, address: tuple[str, int], size: int, deadline: float) -> None:
        """Send the newest snapshot to the processes that meet at the address. Only the first rank is asked."""
        import torch

        from pcpo_ray.workers.learner import distributed

        assert self.snapshot is not None  # the driver has their manifest
        device = self.learner.policy.device
        group = distributed.Sync(index=0, count=size, address=address, timeout=deadline, device=device)
        for bucket in self.snapshot.buckets:
            group.broadcast(torch.from_numpy(bucket))

    def assist(self, averaged: bool) -> None:
        """Take part while the first rank gathers the weights."""
        self.learner.assist(averaged=averaged)

    def save(self, folder: "RunFolder", state: DriverState, older: Sequence[Sequence[ray.ObjectRef]]) -> None:
        """Write a checkpoint, with the older versions whose references are given."""
        here = folder.here()
        # one by one, as they are written: the other ranks are in no collective then
        opened = map(pulled_weights, state.older, older)
        self.learner.save(here.checkpoint(state.step), state, older=opened, allowed=here.check)
        if self.index == 0:
            here.push_checkpoint(state.step)

    def restore(self, folder: "RunFolder", step: int) -> DriverState:
        return self.learner.restore(folder.here().fetch_checkpoint(step))

    def older(self, folder: "RunFolder", step: int, version: int) -> tuple[Manifest, *tuple[np.ndarray, ...]]:
        """Read an older version from a checkpoint: its manifest and buckets. Only the first rank is asked."""
        from pcpo_ray.runs import checkpoints

        found = checkpoints.read_version(folder.here().fetch_checkpoint(step), version)
        return found.manifest, *found.buckets
