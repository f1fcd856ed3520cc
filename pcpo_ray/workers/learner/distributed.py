"""Ranks: the learner's processes in lock-step, over torch.distributed; one process alone is rank 0 of 1.

Contract: every rank calls the same methods in the same order, on one thread; each call has the group's deadline, after
which it raises RuntimeError. A rank that fails writes the cause to the store where all have met, so that every rank can
name it: at once with the next sum, or at the deadline of another call that waits for it.

There are two strategies. With `ddp` each rank has a copy of the network, and gradients are added up once per
mini-batch. With `fsdp2` (torch's fully_shard) each holds a part of every parameter, gathered layer by layer for each
pass. Accelerate does not wrap the network: it has no FSDP2 on CPUs, and its DDP reduces gradients in every pass.
"""

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from pcpo_ray.errors import CheckpointError, PcpoError, TrainingError
from pcpo_ray.process.deadlines import within

GLANCE = 0.1
"""Seconds between two checks for the other ranks' messages."""

FAILURE = "failure"
"""The store's key for the cause of the first failure."""


class RankError(RuntimeError):
    """A rank's failure, raised on every rank."""


@dataclass(frozen=True, kw_only=True)
class Rank:
    """One of `count` processes that train on a batch together; `sharded` if each holds a part of every parameter.

    The parts of `offloaded` ranks lie in host memory.
    """

    index: int = 0
    count: int = 1
    sharded: bool = False
    offloaded: bool = False
    store: TCPStore | None = None
    """A connection of its own to the store where the ranks have met: torch's blocks while it waits."""

    @property
    def first(self) -> bool:
        """True for the rank that writes and sends for all."""
        return self.index == 0

    def total(self, tensor: Tensor) -> Tensor:
        """Sum over all ranks, in place."""
        if self.count > 1:
            distributed.all_reduce(tensor)
        return tensor

    def largest(self, tensor: Tensor) -> Tensor:
        """Take the maximum over all ranks, element by element, in place."""
        if self.count > 1:
            distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
        return tensor

    def agreed(self, tensor: Tensor, failure: Exception | None) -> Tensor:
        """Sum over all ranks, or raise the same error on all of them if one has a failure (`told`)."""
        if self.count == 1:
            if failure is not None:
                raise failure
            return tensor
        if failure is not None:
            self.told(failure)  # before the others read the store
        flagged = torch.cat([tensor.flatten(), tensor.new_tensor([float(failure is not None)])])
        *_, failed = self.total(flagged).tolist()
        if failed:
            raise self.told(failure or RankError("another rank failed")) from failure
        return flagged[:-1].reshape(tensor.shape)

    def told(self, error: Exception) -> Exception:
        """Return the first failure of any rank, for every rank to raise; `error` itself if no rank failed before.

        It is a TrainingError for an error of this package, else a RankError.
        """
        if self.store is None:
            return error
        ours = isinstance(error, PcpoError)
        what = str(error) if ours else f"{type(error).__name__}: {error}"
        own = json.dumps({"ours": ours, "text": f"rank {self.index} of {self.count}: {what}"})
        try:
            first = json.loads(self.store.compare_set(FAILURE, "", own))
        except RuntimeError:  # the process that holds the store is gone
            first = json.loads(own)
        return (TrainingError if first["ours"] else RankError)(first["text"])

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give every rank the sum of all ranks' gradients; with `fsdp2` the backward pass has done it."""
        if self.count == 1 or self.sharded:
            return
        listed = list(parameters)
        there = torch.tensor([float(p.grad is not None) for p in listed], device=listed[0].device)
        used = [p for p, any_rank in zip(listed, self.largest(there).tolist(), strict=True) if any_rank]
        for dtype in {p.dtype for p in used}:  # one reduction per dtype: many small ones would wait for each other
            same = [p for p in used if p.dtype is dtype]
            flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in same])
            for parameter, part in zip(same, self.total(flat).split([p.numel() for p in same]), strict=True):
                parameter.grad = part.reshape(parameter.shape).clone()


class Meeting:
    """An exchange of messages between ranks that write or read: no collective, with `seconds` of its own in all.

    Contract: all ranks open meetings of the same names in the same order, and call `tell` equally often in each. A rank
    that fails says so when it leaves, and the others raise at once.
    """

    def __init__(self, rank: Rank, name: str, *, seconds: float) -> None:
        self.rank, self.name, self.seconds = rank, name, seconds
        self.deadline = time.monotonic() + seconds
        self.count = rank.count if rank.sharded else 1
        self.rounds = 0
        self.failed = False
        """True once another rank has failed."""

    @contextmanager
    def held(self) -> Iterator[None]:
        """Exchange messages while inside, and report a failure when leaving."""
        try:
            yield
        except Exception as error:
            if self.count > 1 and not self.failed:
                self._set({"failed": f"{error}", "ours": isinstance(error, PcpoError)})
            raise

    def tell(self, said: Any = None) -> list[Any]:
        """Send a message to all ranks and return everyone's, in rank order.

        Raises CheckpointError if a rank is late or fails with an error of this package, else RuntimeError.
        """
        if self.count == 1:
            return [said]
        self._set({"said": said})
        keys = [self._key(index) for index in range(self.count)]
        found: dict[int, Any] = {}
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
            if time.monotonic() > self.deadline:
                raise CheckpointError(
                    f"rank {self.rank.index} of the learner has waited {self.seconds:.0f} s for ranks {absent} "
                    f"({self.name}); check whether their storage hangs or is that slow"
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
    """Open a store where processes can meet, at a free port of this address; it closes with the returned object."""
    return TCPStore(address, 0, is_master=True, wait_for_workers=False)


def join(
    *,
    index: int,
    count: int,
    sharded: bool,
    offloaded: bool = False,
    address: tuple[str, int],
    start: float,
    timeout: float,
    device: Any,
) -> Rank:
    """Meet the other ranks, who come within `start` seconds, at the address of a `host`.

    `timeout` seconds are the deadline of every call afterwards.
    """
    deadline = timedelta(seconds=timeout)
    store = TCPStore(*address, timeout=deadline)
    _meet(store, "start", index, count, start)
    backend = "gloo"
    if device.type == "cuda":  # NCCL knows no tensors of the CPU, where offloaded parts, gradients and norms are
        backend = "cpu:gloo,cuda:nccl" if offloaded else "nccl"
    distributed.init_process_group(backend, store=store, rank=index, world_size=count, timeout=deadline)
    own_store = TCPStore(*address, timeout=deadline)
    return Rank(index=index, count=count, sharded=sharded, offloaded=offloaded, store=own_store)


def _meet(store: TCPStore, purpose: str, index: int, count: int, seconds: float) -> None:
    """Wait at a store until all have come. Raises RuntimeError after so many seconds."""
    store.set(f"{purpose}/{index}", "")
    store.wait([f"{purpose}/{other}" for other in range(count)], timedelta(seconds=seconds))


class Sync:
    """A process group for one broadcast of weights, apart from all others: rank 0 sends, the others receive.

    Raises RuntimeError if a member is lost, and TimeoutError `timeout` seconds after it was made. No process dies of
    that, wherever a member is lost:

    - before the meeting: the store has a deadline;
    - after it, while NCCL makes its communicator, in the first broadcast: `ncclCommInitRank` waits for all members
      without a deadline, and torch's own for it (TORCH_NCCL_NONBLOCKING_TIMEOUT) counts for a whole process. So every
      broadcast is made in a thread, which is left waiting; it has this group's locks and no other's;
    - during a broadcast: by default NCCL's watchdog would end the process (TORCH_NCCL_ASYNC_ERROR_HANDLING), but a
      group that waits on the CPU (TORCH_NCCL_BLOCKING_WAIT, read when it is made) has no watchdog. What still hangs on
      the GPU is aborted.
    """

    def __init__(self, *, index: int, count: int, address: tuple[str, int], timeout: float, device: Any) -> None:
        deadline = timedelta(seconds=timeout)
        self.index, self.device, self.until = index, device, time.monotonic() + timeout
        store = TCPStore(*address, timeout=deadline)
        _meet(store, "come", index, count, timeout)  # NCCL would wait forever for a missing member
        if device.type == "cuda":
            options = distributed.ProcessGroupNCCL.Options()
            options._timeout = deadline
            with _waiting_on_the_cpu():
                self.group: Any = distributed.ProcessGroupNCCL(store, index, count, options)
        else:
            self.group = distributed.ProcessGroupGloo(store, index, count, deadline)

    def broadcast(self, bucket: Tensor) -> Tensor:
        """Send rank 0's bucket, (bytes,) uint8, to all."""
        held = bucket.to(self.device)
        within(max(0.0, self.until - time.monotonic()), lambda: self._broadcast(held))
        return bucket if self.index == 0 else held.cpu()

    def _broadcast(self, held: Tensor) -> None:
        on_gpu = self.device.type == "cuda"
        if on_gpu:  # each thread has a GPU of its own
            torch.cuda.set_device(held.device)
        try:
            self.group.broadcast(held, 0).wait()
        except RuntimeError:
            if on_gpu:
                self.group.abort()
            raise


@contextmanager
def _waiting_on_the_cpu() -> Iterator[None]:
    """Make NCCL groups with blocking calls while inside; the ranks' own group stays as it is."""
    name = "TORCH_NCCL_BLOCKING_WAIT"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        os.environ.pop(name) if before is None else os.environ.update({name: before})
