"""Autotuning of the micro-batch: the number of pairs per pass that is fastest and gives the sampler's bits.

Candidates are the sampler's own number and its doubles. A candidate counts only if its predictions have the same bits
as block by block, and if memory suffices. Bits do not count where the learner's predictions are not compared with the
sampler's (objective.old_predictions).
"""

import contextlib
import math
import time
from collections.abc import Callable, Hashable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from pcpo_ray.data.updates import MicroBatchChoice
from pcpo_ray.workers.learner import micro_batches, mini_batches, optimizers
from pcpo_ray.workers.learner.distributed import Rank
from pcpo_ray.workers.learner.loss import Loss
from pcpo_ray.workers.learner.masters import Masters
from pcpo_ray.workers.learner.mini_batches import Block
from pcpo_ray.workers.learner.pair_loader import PairLoader, SampledGroup, Trajectories, trajectories_of
from pcpo_ray.workers.timing import seconds_of

MOST = 8
"""The largest candidate, in multiples of the sampler's number: memory grows with it, and speed hardly any more."""

LONGEST = 60.0
"""Seconds after which no further candidate is tried."""


class Autotuner:
    """Tries micro-batches on a mini-batch and leaves weights, gradients and optimizer as they were."""

    def __init__(
        self,
        loader: PairLoader,
        loss: Loss,
        masters: Masters,
        optimizer: torch.optim.Optimizer,
        backward: Callable[[Tensor], None],
        rank: Rank,
    ) -> None:
        self.loader, self.loss, self.masters = loader, loss, masters
        self.optimizer, self.backward, self.rank = optimizer, backward, rank

    def choose(self, batch: Sequence[SampledGroup], blocks: Sequence[Block], own: Sequence[Block]) -> MicroBatchChoice:
        """Choose the micro-batch for a mini-batch of `blocks`, of which this rank trains on its `own`.

        Every rank chooses the same; each must ask.
        """
        device = self.loss.policy.device
        most = sum(map(len, blocks)) // self.rank.count
        sizes = candidates(mini_batches.length_of(self.loader.config, None), most)
        taken = torch.zeros(len(sizes), dtype=torch.float64)  # for a rank without any block
        failure = None
        if own:
            try:
                taken = self._measure(sizes, trajectories_of(batch, own), own)
            except Exception as error:
                failure = error
        return MicroBatchChoice.of(sizes, self.rank.agreed(taken.to(device), failure).tolist())

    def _measure(self, sizes: Sequence[int], groups: Trajectories, own: Sequence[Block]) -> Tensor:
        """Measure the seconds per pair of each size (`measure`) on these blocks of the groups."""
        longest = max(self.loader.passes(own, groups, sizes[-1]), key=lambda blocks: sum(map(len, blocks)))
        opened = {
            place: self.loader.open(groups[place], slice(0, len(groups[place]))).trajectory
            for place in {block.place for block in longest}
        }

        @torch.no_grad()
        def same(size: int) -> bool:
            if len(longest) * len(longest[0]) < size:
                return False
            if self.loss.settings.old_predictions == "recomputed":
                return True
            shapes: dict[Hashable, list[list[Block]]] = {}
            for blocks in self.loader.passes(own, groups, size):
                texts = micro_batches.shapes_of(groups[blocks[0].place])
                shapes.setdefault((len(blocks), len(blocks[0]), texts), []).append(blocks)
            tried = [blocks for alike in shapes.values() for blocks in (alike[0], alike[-1])]
            return all(
                torch.equal(self.loss.predict(pairs), torch.cat([self.loss.predict(one) for one in pairs.apart()]))
                for pairs in self.loader.pairs({**groups, **opened}, tried)
            )

        def learn(size: int) -> None:
            (pairs,) = self.loader.pairs(opened, [longest[: max(1, size // len(longest[0]))]])
            if self.loss.settings.kl:
                self.loss.reference(pairs)
            self.backward(self.loss.predict(pairs).square().mean())

        # AdamW's two moments, or what another optimizer's first step allocates, must fit beside where it is not parked
        device, run = self.loss.policy.device, self.loader.config
        parked = run.workers.park and device.type == "cuda"
        fresh = [p.numel() for p in self.masters.values.values() if p not in self.optimizer.state and not parked]
        moments = torch.empty(optimizers.state_bytes(run.optimizer, fresh), dtype=torch.uint8, device=device)
        with self._away_from_zero():
            taken = measure(sizes, same, learn, device)
        del moments
        self.optimizer.zero_grad()
        return taken

    @contextlib.contextmanager
    def _away_from_zero(self) -> Iterator[None]:
        """Fill trained tensors that are all zeros with noise while inside.

        Half of a new adapter is zero, so that its kernels would not show in any bit. The std of 0.02 is about that of
        diffusers' initialisation.
        """
        zeros = [p.data for p in self.masters.network.values() if not p.any()]
        drawing = torch.Generator(self.loss.policy.device).manual_seed(0)
        for values in zeros:
            values.normal_(std=0.02, generator=drawing)
        try:
            yield
        finally:
            for values in zeros:
                values.zero_()


def candidates(sampled: int, most: int) -> list[int]:
    """List the sampler's number and its doubles up to `most`."""
    doubles = [sampled * 2**power for power in range(int(math.log2(MOST)) + 1)]
    return [sampled, *(size for size in doubles if sampled < size <= most)]


def measure(
    sizes: Sequence[int], same: Callable[[int], bool], learn: Callable[[int], None], device: torch.device
) -> Float[Tensor, " sizes"]:
    """Measure the seconds per pair of each of the `sizes`, the first being the sampler's own.

    It is inf from the first size on that is no choice: `same` finds other bits, memory is short, or time is up. `learn`
    runs so many pairs forward and backward.
    """
    taken = torch.full((len(sizes),), math.inf, dtype=torch.float64)
    started = time.perf_counter()
    for place, size in enumerate(sizes):
        try:
            if place and (time.perf_counter() - started > LONGEST or not same(size)):
                break
            taken[place] = min(seconds_of(learn, size, device) for _ in range(2)) / size
        except torch.OutOfMemoryError:
            break
    return taken
