"""The learner's actor: a thin shell around one rank, which runs in a process of its own."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from ray import exceptions

from pcpo_ray import config
from pcpo_ray.cluster.actors import HEALTH, SampleReport, SamplingWorker
from pcpo_ray.cluster.pulling import pulled_weights, seconds_to_pull
from pcpo_ray.data import weights
from pcpo_ray.data.types import Task
from pcpo_ray.data.updates import DriverState, Update
from pcpo_ray.data.weights import Manifest

if TYPE_CHECKING:
    from pcpo_ray.runs.folder import RunFolder
    from pcpo_ray.workers.learner.distributed import Rank
    from pcpo_ray.workers.packing import PackedTrajectory


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
            offloaded=role.offload,
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

    @ray.method(concurrency_group=HEALTH)  # type: ignore[untyped-decorator]
    def again(self) -> tuple[Manifest, *tuple[np.ndarray, ...]]:
        """Return the newest snapshot once more, also in the midst of an update. Only the first rank is asked."""
        assert self.snapshot is not None  # the driver has their manifest
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
