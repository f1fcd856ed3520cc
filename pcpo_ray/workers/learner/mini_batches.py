"""Which (image, step) pairs of a batch make up each optimizer step, and which rank learns which of them.

Pure in (seed, step) and the groups' numbers of images and trained steps, so that the driver knows whom to send what
without opening a trajectory.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pcpo_ray import config
from pcpo_ray.data.seeds import seed_of
from pcpo_ray.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Block:
    """Images of the group at `place`, at its k-th trained step: what the sampler had through the network together."""

    place: int
    rows: slice
    k: int

    def __len__(self) -> int:
        length: int = self.rows.stop - self.rows.start
        return length

    @property
    def key(self) -> tuple[int, int, int]:
        """What tells it from the other blocks of a batch, in their order."""
        return self.place, self.rows.start, self.k


def split_groups(optimizer: config.Optimizer, groups: int, *, seed: int, step: int) -> list[list[int]]:
    """Split the batch: the positions of each optimizer step's groups, `minibatches` an epoch, drawn anew each epoch."""
    drawn = np.random.default_rng(seed_of(seed, "minibatches", step))
    count = min(optimizer.minibatches, groups)
    orders = [drawn.permutation(groups) for _ in range(optimizer.epochs)]
    return [part.tolist() for order in orders for part in np.array_split(order, count)]


def length_of(run: config.Run, micro_batch: int | None) -> int:
    """The images of a block: as many as the sampler had at once, or fewer, where fewer pairs than that go together."""
    images = run.rollout.images
    return min(images, run.sampling.batch or images, micro_batch or images)


def cut_into_blocks(groups: Mapping[int, tuple[int, int]], length: int) -> list[Block]:
    """All (image, step) pairs of groups of so many images and trained steps each, in blocks of at most `length` images.

    In the groups' order; of a group's images some at all steps, then the next.
    """
    return [
        Block(place=place, rows=slice(start, min(start + length, images)), k=k)
        for place, (images, steps) in groups.items()
        for start in range(0, images, length)
        for k in range(steps)
    ]


def rank_share(blocks: Sequence[Block], rank: int, ranks: int) -> list[Block]:
    """Those of a minibatch's blocks that a rank learns, in their order.

    All ranks have as many, or one less, and so of blocks of each number of images: what a group leaves over is spread
    too. A rank's lie side by side, so that it opens few groups.
    """
    kinds: dict[int, list[int]] = {}
    for number, block in enumerate(blocks):
        kinds.setdefault(len(block), []).append(number)
    own: list[int] = []
    first = 0  # of the ranks that have one block more: those after the last that had one of another kind
    for numbers in kinds.values():
        least, more = divmod(len(numbers), ranks)
        counts = [least + ((index - first) % ranks < more) for index in range(ranks)]
        begin = sum(counts[:rank])
        own += numbers[begin : begin + counts[rank]]
        first = (first + more) % ranks
    return [blocks[number] for number in sorted(own)]


def rank_groups(run: config.Run, groups: Sequence[int], trained: int, *, step: int, rank: int, ranks: int) -> list[int]:
    """The positions of those groups of a batch of which a rank learns anything, in update `step`.

    `groups` have so many images each, at `trained` steps.
    """
    asked = run.optimizer.micro_batch
    length = length_of(run, asked if isinstance(asked, int) else None)
    found: set[int] = set()
    for part in split_groups(run.optimizer, len(groups), seed=run.seed, step=step):
        blocks = cut_into_blocks({place: (groups[place], trained) for place in part}, length)
        found.update(block.place for block in rank_share(blocks, rank, ranks))
    return sorted(found)


def fewest_blocks(run: config.Run, trained: int) -> int:
    """The blocks of the smallest minibatch of whole batches, each group having `trained` steps: what ranks share."""
    asked = run.optimizer.micro_batch
    length = length_of(run, asked if isinstance(asked, int) else None)
    return run.rollout.prompts // run.optimizer.minibatches * -(-run.rollout.images // length) * trained


def check_ranks(run: config.Run, trained: int) -> None:
    """Raise ConfigError where there are more ranks than blocks in a minibatch: some would idle."""
    ranks, blocks = run.workers.learner.ranks, fewest_blocks(run, trained)
    if ranks > blocks:
        raise ConfigError(
            f"workers.learner.ranks is {ranks}, and a minibatch has {blocks} blocks for them to share (of "
            f"{run.rollout.prompts // run.optimizer.minibatches} groups the images that are sampled together, at each "
            f"of {trained} trained steps); use at most {blocks} ranks, a smaller optimizer.minibatches or a smaller "
            "sampling.batch"
        )


def joined(shares: Iterable[Iterable[Block]]) -> list[Block]:
    """The blocks of several minibatches, each once, in the batch's order."""
    found = {block.key: block for blocks in shares for block in blocks}
    return [found[key] for key in sorted(found)]
