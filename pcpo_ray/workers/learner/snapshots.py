"""Snapshots of what is trained: weights to samplers, checkpoints to disk and back."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pcpo_ray.data import weights
from pcpo_ray.data.parked import Parked
from pcpo_ray.data.updates import DriverState
from pcpo_ray.data.weights import Manifest, WeightSnapshot
from pcpo_ray.errors import CheckpointError, TrainingError
from pcpo_ray.models.policy import Policy
from pcpo_ray.runs import checkpoints
from pcpo_ray.runs.checkpoints import Checkpoint
from pcpo_ray.runs.disk import writing
from pcpo_ray.workers import canary, precision
from pcpo_ray.workers.learner import distributed, optimizers, sharding
from pcpo_ray.workers.learner.distributed import Rank
from pcpo_ray.workers.learner.ema import EMA
from pcpo_ray.workers.learner.masters import Masters


class Snapshots:
    """Packs, saves and restores a learner's weights, optimizer state and EMA.

    Where each rank holds a part of every parameter, all ranks call the same methods together. `resting` are the tensors
    that are parked between optimizer steps. `dtypes` are those in which samplers hold the trained weights.
    """

    def __init__(
        self,
        policy: Policy,
        masters: Masters,
        optimizer: torch.optim.Optimizer,
        ema: EMA | None,
        resting: Parked,
        rank: Rank,
        dtypes: Mapping[str, torch.dtype],
    ) -> None:
        self.policy, self.masters, self.optimizer, self.ema, self.rank = policy, masters, optimizer, ema, rank
        self.resting, self.dtypes = resting, dtypes
        self.saves = self.restores = 0

    def pack(self, version: int, *, averaged: bool, over: WeightSnapshot | None) -> WeightSnapshot:
        """Copy the trained weights, or their EMA, to send; the memory of `over` may be reused."""
        with self._sent(version, averaged) as (parameters, predicted):
            return weights.pack(version, parameters, averaged=averaged, canary=predicted, over=over)

    def manifest(self, version: int) -> Manifest:
        """Describe the trained weights without a copy of them."""
        with self._sent(version, averaged=False) as (parameters, predicted):
            return weights.describe(version, parameters, canary=predicted)

    def assist(self, version: int, *, averaged: bool) -> None:
        """Help the first rank to gather the weights that it packs."""
        with self._sent(version, averaged):
            pass

    def buckets(self) -> int:
        """Count the buckets in which the weights are sent."""
        return len(weights.layout(self._in_network_dtype())[1])

    def _in_network_dtype(self) -> dict[str, Tensor]:
        """Return the trained weights as samplers hold them."""
        return {name: parameter.detach().to(self.dtypes[name]) for name, parameter in self.masters.network.items()}

    @contextlib.contextmanager
    def _sent(self, version: int, averaged: bool) -> Iterator[tuple[dict[str, Tensor], tuple[float, ...]]]:
        with self._exported() if averaged else contextlib.nullcontext():
            predicted = self.predict_canary(version)
            yield self._gathered(self._in_network_dtype(), dict.fromkeys(self.masters.network, 0)), predicted

    def predict_canary(self, version: int) -> tuple[float, ...]:
        """Predict on the canary's inputs. Raises TrainingError if that is not finite, as nobody could continue."""
        predicted = canary.prediction(self.policy)
        if not np.isfinite(predicted).all():
            raise TrainingError(
                f"with the weights of version {version} the network's prediction is not finite; "
                f"{precision.remedy(self.policy.run, version)}"
            )
        return predicted

    def _gathered(self, tensors: Mapping[str, Tensor], writers: Mapping[str, int]) -> dict[str, Tensor]:
        """Gather all tensors on all ranks together, and keep whole those that this rank writes."""
        found = {}
        for name, tensor in tensors.items():
            complete = sharding.gather_whole(tensor.detach())
            if writers[name] == self.rank.index:
                found[name] = complete.cpu() if self.rank.sharded else complete
        return found

    @contextlib.contextmanager
    def _exported(self) -> Iterator[None]:
        """Give the network the weights that users get while inside: the EMA, if there is one."""
        if self.ema is None:
            yield
            return
        try:
            with self.ema.applied():
                self.masters.write_back()
                yield
        finally:
            self.masters.write_back()

    def size(self, older: int) -> int:
        """Return the bytes of a checkpoint with so many older versions: masters, their EMA, and at most two moments."""
        copies = 3 + (self.ema is not None) + older
        return copies * sum(master.nbytes for master in self.masters.values.values())

    def save(
        self,
        folder: Path,
        version: int,
        state: DriverState,
        *,
        older: Iterable[WeightSnapshot],
        allowed: Callable[[], None],
    ) -> None:
        """Write a checkpoint that `restore` continues from exactly, and that diffusers can load.

        With fsdp2 each rank writes a part, the first one also the `older` versions that the batches of `state.begun`
        need; they may be fetched one by one as they are written. Nothing begins before every rank is `allowed`, which
        may raise, and the folder gets its name only after another look. Raises TrainingError, with nothing written, if
        the weights or their EMA predict what is not finite.
        """
        self.saves += 1
        seconds = checkpoints.seconds_for(2 * self.size(len(state.older)))
        meeting = distributed.Meeting(self.rank, f"checkpoint {self.saves}", seconds=seconds)
        with meeting.held(), self.resting.awake(), contextlib.ExitStack() as until_whole:
            allowed()
            meeting.tell()  # a rank that may not write would leave the others waiting in a collective
            self.predict_canary(version)
            moments = optimizers.pack(self.optimizer, self.masters.values, self.policy.run.optimizer)
            averaged = {} if self.ema is None else dict(zip(self.masters.network, self.ema.values, strict=True))
            parts = self.rank.count if self.rank.sharded else 1
            held = [
                self._gathered(tensors, sharding.owners({name: t.nbytes for name, t in tensors.items()}, parts))
                for tensors in (self.masters.values, averaged, moments)
            ]
            own = until_whole.enter_context(checkpoints.unfinished(folder) if self.rank.first else writing(folder))
            made = folder.with_name(meeting.tell(own and own.name)[0])
            written = meeting.tell(checkpoints.write_part(made, *held, part=self.rank.index, parts=parts))
            # only now: a rank that still writes keeps the others waiting in a collective, which would time out
            with self._exported():
                if self.ema is not None:
                    self.predict_canary(version)
                exported = self._gathered(self._in_network_dtype(), dict.fromkeys(self.masters.network, 0))
                if self.rank.first:
                    self.policy.denoiser.save(made, exported)
                    written.append(checkpoints.write_versions(made, older))
            if self.rank.first:
                allowed()
                checkpoints.finish(
                    made,
                    folder,
                    version=version,
                    state=state,
                    sums={name: found for sums in written for name, found in sums.items()},
                    updates=0 if self.ema is None else self.ema.updates,
                )
            meeting.tell()

    def restore(self, folder: Path) -> Checkpoint:
        """Take over a checkpoint's weights, optimizer state and EMA.

        Raises CheckpointError: before anything is changed if files or shapes are wrong, and afterwards if nobody could
        continue from these weights.
        """
        self.restores += 1
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        seconds = checkpoints.seconds_for(2 * size)  # another rank may have to fetch it before it reads
        meeting = distributed.Meeting(self.rank, f"restoring {self.restores}", seconds=seconds)
        with meeting.held():
            loaded = checkpoints.read(folder)
            meeting.tell()  # only now: a rank that still reads keeps the others waiting in a collective
        sharding.load_parameters(folder, loaded.parameters, self.masters.values)
        self.masters.write_back()
        try:
            optimizers.unpack(self.optimizer, self.masters.values, loaded.optimizer, sharding.shard_like)
        finally:
            self.resting.sleep()
        if self.ema is not None:
            means = [
                sharding.shard_like(loaded.averaged[name], value)
                for name, value in zip(self.masters.network, self.ema.values, strict=True)
            ]
            self.ema.restore(means, updates=loaded.updates)
        try:
            self.predict_canary(loaded.version)
        except TrainingError as error:
            raise CheckpointError(
                f"checkpoint {folder} cannot be continued: {error}; delete it to go on from the one before"
            ) from None
        return loaded
