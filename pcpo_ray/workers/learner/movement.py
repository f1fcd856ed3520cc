"""Movement: the distance that an update moved the trained weights, to detect training that changes nothing.

    update_ratio     |update| / |weights|, both L2 norms over all trained weights
    moved_fraction   the fraction of the trained weights whose bits changed

A tensor with more than SAMPLED values is represented by SAMPLED evenly spaced ones.

A run whose weights hardly move for PATIENCE steps in a row, or move by weight decay alone, learns nothing, and ends.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pcpo_ray import config
from pcpo_ray.data.tensors import part_here
from pcpo_ray.errors import TrainingError
from pcpo_ray.workers.learner.distributed import Rank

SAMPLED = 2**16

LEAST_MOVED = 0.001
"""The moved fraction below which an update counts as no change."""

LEAST_RATIO = 1e-8
"""The update ratio below which it does too; float32 resolves differences of 6e-8 of a weight's size."""

PATIENCE = 10


@dataclass(frozen=True, kw_only=True)
class Moved:
    """The result of `Movement.measured`."""

    update_ratio: float
    moved_fraction: float


def unmoved(steps: Iterable[Mapping[str, Any]], optimizer: config.Optimizer) -> str:
    """Explain why a run with these train rows of metrics.jsonl learns nothing; empty if it does learn."""
    recent = list(steps)[-PATIENCE:]
    if len(recent) < PATIENCE or not all(_still(row, optimizer) for row in recent):
        return ""
    last = recent[-1]
    if all(row["skipped_gradients"] for row in recent):
        why = "gradients were not finite; set model.dtype to float32 or bfloat16, or lower optimizer.learning_rate"
    elif all(row["advantage_abs_mean"] == 0 for row in recent):
        why = (
            "all scores of a group were equal, so there was nothing to learn from; use a reward that tells images apart"
        )
    elif last["gradient_norm"] == 0:
        why = (
            f"the gradient is 0, with {last['inactive_fraction']:.0%} of the pairs outside the clip range; raise "
            "objective.clip_range, or lower optimizer.learning_rate"
        )
    elif last["moved_fraction"] >= LEAST_MOVED and last["update_ratio"] >= LEAST_RATIO:
        why = (
            "that is by weight decay alone, beside which the gradient does not count; set optimizer.epsilon=1e-8 (now "
            f"{optimizer.epsilon:g}), and look at optimizer.max_gradient_norm and model.train.alpha"
        )
    else:
        why = "an update is below what float32 can add to most weights; raise optimizer.learning_rate"
    return (
        f"the weights did not move in the last {PATIENCE} steps (in the last one {last['moved_fraction']:.2%} of them "
        f"changed, by {last['update_ratio']:.1g} of their size): {why}"
    )


def _still(row: Mapping[str, Any], optimizer: config.Optimizer) -> bool:
    """Return True if a step did not train anything."""
    least = max(LEAST_RATIO, _by_decay(row["learning_rate"], optimizer))
    moved = row["moved_fraction"] >= LEAST_MOVED and row["update_ratio"] >= least
    return not moved or row["gradient_norm"] == 0


def _by_decay(learning_rate: float, optimizer: config.Optimizer) -> float:
    """Return the update ratio of weight decay alone, with what float32 adds to it by rounding."""
    decay = 0.0 if optimizer.own else learning_rate * optimizer.weight_decay
    if decay < 2**-25:  # 1 - decay is 1 in float32
        return 0.0
    return optimizer.minibatches * optimizer.epochs * (1.01 * decay + 2**-23)


class Movement:
    """A copy of some values of each of the float32 `weights`, to compare with the weights after an update."""

    def __init__(self, weights: Iterable[Tensor], rank: Rank) -> None:
        self.weights = list(weights)
        self.rank = rank
        self.before = [_some(tensor).clone() for tensor in self.weights]

    @torch.no_grad()
    def measured(self, version: int) -> Moved:
        """Compare with the present weights, over all ranks if each holds a part.

        Raises TrainingError, naming the update's `version`, if any weight is not finite.
        """
        sums = torch.stack([_sums(tensor, old) for tensor, old in zip(self.weights, self.before, strict=True)]).sum(0)
        if self.rank.sharded:
            sums = self.rank.total(sums)
        update, squares, moved, count = sums.tolist()
        if not math.isfinite(update + squares):
            raise TrainingError(
                f"the weights after update {version} are not finite; continue from the newest checkpoint under another "
                "name with a lower optimizer.learning_rate (model.train.start), or with optimizer.mixed_precision=no"
            )
        return Moved(update_ratio=math.sqrt(update / squares) if squares else math.inf, moved_fraction=moved / count)


def _some(tensor: Tensor) -> Float[Tensor, " S"]:
    """Take at most SAMPLED values of this process's part; an odd stride reaches every column of a matrix."""
    flat = part_here(tensor.detach()).reshape(-1)
    stride = -(-len(flat) // SAMPLED) | 1
    return flat[::stride]


def _sums(tensor: Tensor, before: Float[Tensor, " S"]) -> Float[Tensor, "4"]:
    """Return the tensor's |update|^2, |weights|^2, number of changed values, and number of values."""
    here, some = part_here(tensor.detach()), _some(tensor)
    each = here.numel() / max(1, len(some))
    update = (some - before).double().square().sum() * each
    moved = (some != before).sum() * each
    squares = torch.linalg.vector_norm(here).double().square()
    return torch.stack([update, squares, moved, torch.full_like(update, here.numel())])
