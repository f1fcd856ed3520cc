"""Ranks: the learner's processes in lock-step, over torch.distributed; one process alone is rank 0 of 1.

Contract: every rank calls the same methods in the same order, on one thread; each call has the group's deadline, after
which it raises RuntimeError. A rank that fails says so in the store where all have met, so that each can say which rank
it was, and why: those that it has told with the next sum at once, those that wait for it in another call at their
deadline. Two strategies: `ddp`, a whole copy of the network each, gradients added up once a
minibatch; `fsdp2`, a part of every parameter each (torch's fully_shard), gathered layer by layer while it is computed
with. Accelerate is not asked to wrap the network: it has no FSDP2 on CPU, and its DDP would add gradients up once a
backward pass, not once a minibatch.
"""

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from pcpo_ray.errors import CheckpointError, ModelError, PcpoError, TrainingError

GLANCE = 0.1
"""Seconds between two looks at whether the others have come."""

FAILURE = "failure"
"""Where the first rank that fails says what of."""


class RankError(RuntimeError):
    """What a rank has failed of, as every rank says it."""


@dataclass(frozen=True, kw_only=True)
class Rank:
    """One of `count` processes that learn a batch together; `sharded` where each holds a part of every parameter."""

    index: int = 0
    count: int = 1
    sharded: bool = False
    store: TCPStore | None = None
    """A connection of its own to where the ranks have met: torch's is blocked while it waits."""

    @property
    def first(self) -> bool:
        """Whether it is the one that writes and sends for all."""
        return self.index == 0

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        if self.count > 1:
            distributed.all_reduce(tensor)
        return tensor

    def largest(self, tensor: Tensor) -> Tensor:
        """The greatest of all ranks, element by element, in place."""
        if self.count > 1:
            distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
        return tensor

    def agreed(self, tensor: Tensor, failure: Exception | None) -> Tensor:
        """The sum over all ranks, where none has a failure. Raises the same on all of them where one has (`told`)."""
        if self.count == 1:
            if failure is not None:
                raise failure
            return tensor
        if failure is not None:
            self.told(failure)  # before the others look
        flagged = torch.cat([tensor.flatten(), tensor.new_tensor([float(failure is not None)])])
        *_, failed = self.total(flagged).tolist()
        if failed:
            raise self.told(failure or RankError("another rank failed")) from failure
        return flagged[:-1].reshape(tensor.shape)

    def told(self, error: Exception) -> Exception:
        """What the first rank to fail has failed of, for every rank to raise; that is `error` where nobody was before.

        A TrainingError where that was an error of this package, else a RankError.
        """
        if self.store is None:
            return error
        ours = isinstance(error, PcpoError)
        what = str(error) if ours else f"{type(error).__name__}: {error}"
        own = json.dumps({"ours": ours, "text": f"rank {self.index} of {self.count}: {what}"})
        try:
            first = json.loads(self.store.compare_set(FAILURE, "", own))
        except RuntimeError:  # its keeper, the first rank's process, is gone
            first = json.loads(own)
        return (TrainingError if first["ours"] else RankError)(first["text"])

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give every rank the sum of all ranks' gradients; with `fsdp2` the backward pass has done it."""
        if self.count == 1 or self.sharded:
            return
        listed = list(parameters)
        there = torch.tensor([float(p.grad is not None) for p in listed], device=listed[0].device)
        used = [p for p, any_rank in zip(listed, self.largest(there).tolist(), strict=True) if any_rank]
        for dtype in {p.dtype for p in used}:  # one reduction a dtype: many small ones would wait for each other
            same = [p for p in used if p.dtype is dtype]
            flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in same])
            for parameter, part in zip(same, self.total(flat).split([p.numel() for p in same]), strict=True):
                parameter.grad = part.reshape(parameter.shape).clone()


class Meeting:
    """What ranks tell each other while they write, by a store and not by a collective, so with a deadline of its own.

    Contract: every rank that is asked to write opens meetings of the same names in the same order, and `tell`s as often
    in each. One that fails tells that when it leaves, and the others raise at once.
    """

    def __init__(self, rank: Rank, name: str, *, seconds: float) -> None:
        self.rank, self.name, self.seconds = rank, name, seconds
        self.count = rank.count if rank.sharded else 1
        self.rounds = 0
        self.failed = False
        """Whether another rank has."""

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, the ranks may tell each other."""
        try:
            yield
        except Exception as error:
            if self.count > 1 and not self.failed:
                self._set({"failed": f"{error}", "ours": isinstance(error, PcpoError)})
            raise

    def tell(self, said: Any = None) -> list[Any]:
        """What every rank says now, in their order, once all have.

        Raises CheckpointError for one that has failed for a reason of ours, or does not come within the seconds;
        RuntimeError for any other failure.
        """
        if self.count == 1:
            return [said]
        self._set({"said": said})
        keys = [self._key(index) for index in range(self.count)]
        found: dict[int, Any] = {}
        deadline = time.monotonic() + self.seconds
        while True:
            for index in [index for index in range(self.count) if index not in found]:
                if self._store.check([keys[index]]):
                    found[index] = json.loads(self._store.get(keys[index]))
                    if "failed" in found[index]:
                        self.failed = True
                        kind = CheckpointError if found[index]["ours"] else RuntimeError
                        raise kind(f"rank {index} of the learner failed: {found[index]['failed']}")
            absent = [index for index in range(self.count) if index not in found]
            if not absent:
                self.rounds += 1
                return [found[index]["said"] for index in range(self.count)]
            if time.monotonic() > deadline:
                raise CheckpointError(
                    f"rank {self.rank.index} of the learner has waited {self.seconds:.0f} s for ranks {absent} to "
                    f"write their parts ({self.name}); see whether the storage there hangs, or is that slow"
                )
            time.sleep(GLANCE)

    @property
    def _store(self) -> TCPStore:
        assert self.rank.store is not None
        return self.rank.store

    def _key(self, index: int) -> str:
        return f"{self.name}/{self.rounds}/{index}"

    def _set(self, told: Mapping[str, Any]) -> None:
        self._store.set(self._key(self.rank.index), json.dumps(told))


def host(address: str) -> TCPStore:
    """Where processes meet, at a free port of this machine, whose address is given; whoever holds it keeps it open."""
    return TCPStore(address, 0, is_master=True, wait_for_workers=False)


def join(*, index: int, count: int, sharded: bool, address: tuple[str, int], timeout: float, device: Any) -> Rank:
    """Meet the other ranks at the address of a `host`, within `timeout` seconds, which is each call's deadline too."""
    deadline = timedelta(seconds=timeout)
    store = TCPStore(*address, timeout=deadline)
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, store=store, rank=index, world_size=count, timeout=deadline)
    return Rank(index=index, count=count, sharded=sharded, store=TCPStore(*address, timeout=deadline))


class Sync:
    """A group of processes that lives for one version of the weights, beside any other: rank 0 sends, all others get.

    Raises RuntimeError where a member is lost, or after `timeout` seconds. That costs no member its process: NCCL's
    watchdog, which would end it by default (TORCH_NCCL_ASYNC_ERROR_HANDLING), does not exist in a group that waits on
    the CPU (TORCH_NCCL_BLOCKING_WAIT, read when a group is made), and what still hangs on the GPU is aborted.
    """

    def __init__(self, *, index: int, count: int, address: tuple[str, int], timeout: float, device: Any) -> None:
        deadline = timedelta(seconds=timeout)
        self.index, self.device = index, device
        store = TCPStore(*address, timeout=deadline)
        # first all come to the store, which has a deadline; NCCL would wait for ever for one that does not come
        store.set(f"come/{index}", "")
        store.wait([f"come/{other}" for other in range(count)], deadline)
        if device.type == "cuda":
            options = distributed.ProcessGroupNCCL.Options()
            options._timeout = deadline
            with _waiting_on_the_cpu():
                self.group: Any = distributed.ProcessGroupNCCL(store, index, count, options)
        else:
            self.group = distributed.ProcessGroupGloo(store, index, count, deadline)

    def broadcast(self, bucket: Tensor) -> Tensor:
        """Rank 0's bucket, (bytes,) uint8, with everybody."""
        held = bucket.to(self.device)
        try:
            self.group.broadcast(held, 0).wait()
        except RuntimeError:
            if self.device.type == "cuda":
                self.group.abort()
            raise
        return bucket if self.index == 0 else held.cpu()


@contextmanager
def _waiting_on_the_cpu() -> Iterator[None]:
    """Inside, NCCL groups are made whose calls return when they are done; those of the ranks stay as they are."""
    name = "TORCH_NCCL_BLOCKING_WAIT"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        os.environ.pop(name) if before is None else os.environ.update({name: before})


def shard(module: nn.Module, rank: Rank) -> None:
    """Leave each rank its part of every parameter, in place: the blocks that diffusers does not split, then the rest.

    Each is given back as soon as it was computed with, so that `named_parameters` are always the parts. Trained weights
    in half precision get float32 parts: they are gathered in their own dtype, and their gradients are reduced in
    float32. An adapter's weights are float32 already. Gradients leave at each pass, and nothing stays gathered between
    two: of FLUX, all of it trained, either would hold 24 to 48 GB more on each rank, which is what the parts are for;
    of its adapter of rank 128, gradients are 2% of what a pass sends.

    Raises ModelError for trained weights of two dtypes.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    device = next(module.parameters()).device.type
    mesh = init_device_mesh(device, (rank.count,))
    trained = sorted({parameter.dtype for parameter in module.parameters() if parameter.requires_grad}, key=str)
    if len(trained) > 1:
        raise ModelError(
            f"the network's own weights are of {trained}, and workers.learner.strategy=fsdp2 gathers all in one dtype; "
            "use model.dtype=float32, workers.learner.strategy=ddp, or model.train.kind=lora"
        )
    policy = MixedPrecisionPolicy()
    if trained != [torch.float32]:
        (dtype,) = trained
        # inputs stay as they are: a timestep rounded to bfloat16 is another timestep
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
        for parameter in module.parameters():
            parameter.data = parameter.data.float()
    gather_whole = set(getattr(module, "_no_split_modules", None) or ())
    for part in [part for part in module.modules() if type(part).__name__ in gather_whole][::-1]:  # inner ones first
        fully_shard(part, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
    fully_shard(module, mesh=mesh, reshard_after_forward=True, mp_policy=policy)


def gather_whole(tensor: Tensor) -> Tensor:
    """A tensor as it is on one rank alone; with `fsdp2` every rank must ask."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a whole tensor, on the device of `like` and cut as it is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    moved = tensor.to(like.device)
    return distribute_tensor(moved, like.device_mesh, like.placements) if isinstance(like, DTensor) else moved


def owners(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """Which rank writes which of the named tensors, so that each writes about as many bytes."""
    written = [0] * count
    found = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        found[name] = written.index(min(written))
        written[found[name]] += sizes[name]
    return found


def load_parameters(folder: Path, saved: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]) -> None:
    """Overwrite `parameters`, rounding the saved float32 values where these are of a narrower dtype.

    Raises CheckpointError if names or shapes are not those of the checkpoint, or what it holds is not float32.
    """
    there = {name: (value.dtype, value.shape) for name, value in saved.items()}
    here = {name: (torch.float32, p.shape) for name, p in parameters.items()}
    if there != here:
        differing = sorted(name for name in there.keys() | here.keys() if there.get(name) != here.get(name))
        raise CheckpointError(
            f"checkpoint {folder} is of another model: {len(differing)} of {len(here)} parameters differ, "
            f"such as {differing[:3]}; use the config that it was trained with"
        )
    with torch.no_grad():
        for name, value in saved.items():
            parameters[name].copy_(shard_like(value, parameters[name]))
