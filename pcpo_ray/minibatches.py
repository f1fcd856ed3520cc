"""Which groups of a batch make up each optimizer step, and which rank learns which of them; pure in (seed, step)."""

from collections.abc import Sequence

import numpy as np

from pcpo_ray import config
from pcpo_ray.trajectory import seed_of


def of(optimizer: config.Optimizer, groups: int, *, seed: int, step: int) -> list[list[int]]:
    """The positions in the batch of each optimizer step's groups: `updates` of them an epoch, drawn anew each epoch."""
    drawn = np.random.default_rng(seed_of(seed, "minibatches", step))
    count = min(optimizer.updates, groups)
    orders = [drawn.permutation(groups) for _ in range(optimizer.epochs)]
    return [part.tolist() for order in orders for part in np.array_split(order, count)]


def share(minibatch: Sequence[int], rank: int, ranks: int) -> list[int]:
    """Those of a minibatch that a rank learns: every `ranks`-th, so that all have as many, or one less."""
    return list(minibatch[rank::ranks])
