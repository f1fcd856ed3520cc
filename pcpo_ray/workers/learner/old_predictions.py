"""Old predictions: those of an update's first weights, which log-ratios are taken to (objective.old_predictions).

The first mini-batch needs no prediction of its own: there, a pass's own prediction is the old one, and its log-ratio
is 0 whatever the micro-batch, kernels or dtype. All other pairs are predicted before the first optimizer step, in the
passes that train on them later.
"""

from collections.abc import Callable, Collection, Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from pcpo_ray import config
from pcpo_ray.algorithm import mismatch
from pcpo_ray.algorithm.mismatch import Mismatch
from pcpo_ray.data.tensors import sent_to
from pcpo_ray.errors import TrainingError
from pcpo_ray.workers import canary
from pcpo_ray.workers.learner.distributed import Rank
from pcpo_ray.workers.learner.mini_batches import Block
from pcpo_ray.workers.learner.pair_loader import PairBatch, PairLoader, SampledGroup, trajectories_of


class OldPredictions:
    """The old predictions of one update on one rank, in main memory: they are about as large as the trajectories.

    `fresh` are the places of groups that the same weights sampled, of which the mismatch is measured. `again` is true
    if pairs of the first mini-batch are trained on again.
    """

    def __init__(self, steps: int, fresh: Collection[int], device: torch.device, *, again: bool) -> None:
        self.mismatch = Mismatch(steps)
        self.fresh, self.device, self.again = fresh, device, again
        self.kept: dict[tuple[int, int, int], Float[Tensor, "B ..."]] = {}
        self.sums = torch.zeros(2, steps, dtype=torch.float64)
        self.largest = torch.zeros(steps, dtype=torch.float64)

    def keep(self, pairs: PairBatch, prediction: Float[Tensor, "B ..."]) -> None:
        """Keep the old predictions of a pass."""
        for block, one in zip(pairs.blocks, prediction.detach().split(pairs.lengths), strict=True):
            self.kept[block.key] = one.cpu()

    def of(self, pairs: PairBatch, prediction: Float[Tensor, "B ..."]) -> tuple[Float[Tensor, "B ..."], bool]:
        """Return the old predictions of a pass, and true if the present `prediction` is taken for them."""
        if pairs.blocks[0].key not in self.kept:
            if self.again:
                self.keep(pairs, prediction)
            return prediction.detach(), True
        kept = [self.kept[block.key] for block in pairs.blocks]
        return sent_to(kept[0] if len(kept) == 1 else torch.cat(kept), self.device), False

    def note(self, pairs: PairBatch, log_ratio: Float[Tensor, " B"]) -> None:
        """Note the mismatch of a pass's pairs whose sampler had the same weights."""
        for block, index, one in zip(pairs.blocks, pairs.indices, log_ratio.split(pairs.lengths), strict=True):
            if block.place in self.fresh:
                self.mismatch.add(index, one)

    def check(self, rank: Rank, version: int, *, most: float) -> None:
        """Merge the mismatch of all ranks, before the weights move. Raises TrainingError above `most`."""
        sums, largest = self.mismatch.sums(self.device)
        self.sums, self.largest = rank.total(sums).cpu(), rank.largest(largest).cpu()
        found = mismatch.worst(mismatch.by_timestep(self.sums))
        if found is None or found[1] <= most:
            return
        raise TrainingError(
            f"at version {version}, step {found[0]}, the learner's predictions have a log-ratio of {found[1]:.3g} "
            f"(rms) to the sampler's at the same weights; expected at most objective.max_mismatch={most:g}: more than "
            "rounding explains. Use the same dtype, attention and guidance on both, leave out sampling.compile, "
            "or raise objective.max_mismatch"
        )

    @property
    def measured(self) -> dict[str, float] | None:
        """The mismatch of all pairs; None if other weights sampled all of them."""
        return mismatch.overall(self.sums, self.largest)

    def table(self, trained: Sequence[int]) -> dict[str, list[float | None]]:
        """Tabulate the mismatch of the trained timesteps; nothing where none was measured."""
        found = mismatch.by_timestep(self.sums)
        return {"mismatch": [found[index] for index in trained]} if self.measured is not None else {}


def later_parts(shares: Sequence[Sequence[Block]]) -> list[list[Block]]:
    """List the blocks of a rank that have to be predicted before the first optimizer step, by their mini-batch.

    They are those of all mini-batches but the first, each where it comes first: then its passes are those that train.
    """
    seen = {block.key for block in shares[0]}
    found = []
    for share in shares[1:]:
        found.append([block for block in share if block.key not in seen])
        seen.update(block.key for block in share)
    return found


def predicted_before(
    loader: PairLoader,
    batch: Sequence[SampledGroup],
    shares: Sequence[Sequence[Block]],
    size: int | None,
    *,
    version: int,
    take: Callable[[PairBatch, OldPredictions], None],
) -> OldPredictions | None:
    """Have `take` predict the pairs of this rank that are not in its first mini-batch, `size` at a time.

    `shares` are its blocks of each mini-batch, `version` is that of the present weights. Returns None if log-ratios
    are taken to the sampler's predictions. Raises TrainingError, on all ranks, for older groups that nothing corrects.
    """
    run, policy = loader.config, loader.policy
    if run.objective.old_predictions == "sampled":
        return None
    versions = [one for one, _, _ in batch]
    _check_ages(run.objective, versions, version)
    fresh = {place for place, one in enumerate(versions) if one == version}
    old = OldPredictions(len(policy.schedule), fresh, policy.device, again=run.optimizer.epochs > 1)
    for blocks in later_parts(shares):
        held = trajectories_of(batch, blocks)
        passes = loader.passes(blocks, held, size)
        with torch.no_grad():
            failure = loader.run(held, passes, lambda pairs: take(pairs, old), lambda: canary.output(policy))
        loader.rank.agreed(torch.zeros(1, device=policy.device), failure)
    return old


def _check_ages(objective: config.Objective, versions: Iterable[int], version: int) -> None:
    """Raise TrainingError for groups of older weights that nothing corrects."""
    older = sorted({one for one in versions if one < version})
    if older and objective.correction is None:
        raise TrainingError(
            f"groups were sampled by version {older[0]}, and objective.old_predictions=recomputed takes version "
            f"{version} for the one that sampled them; expected {version}: set objective.correction, which weighs "
            "them, or keep max_staleness at 0"
        )
