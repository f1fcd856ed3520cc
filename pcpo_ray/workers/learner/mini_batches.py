"""Mini-batches: the (image, step) pairs of each optimizer step, and their distribution over ranks.

Everything is a pure function of (seed, step) and the groups' numbers of images and trained steps. So the driver knows
which rank needs which group without unpacking a trajectory.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pcpo_ray import config
from pcpo_ray.data.seeds import seed_of
from pcpo_ray.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Block:
    """Images of the group at `place`, at its k-th trained step, which passed through the sampler's network together."""

    place: int
    rows: slice
    k: int

    def __len__(self) -> int:
        length: int = self.rows.stop - self.rows.start
        return length

    @property
    def key(self) -> tuple[int, int, int]:
        """A key that is unique in a batch and sorts blocks in the batch's order."""
        return self.place, self.rows.start, self.k


def split_groups(optimizer: config.Optimizer, groups: int, *, seed: int, step: int) -> list[list[int]]:
    """Split the batch's positions into mini-batches of groups: `minibatches` per epoch, drawn anew each epoch."""
    drawn = np.random.default_rng(seed_of(seed, "minibatches", step))
    count = min(optimizer.minibatches, groups)
    orders = [drawn.permutation(groups) for _ in range(optimizer.epochs)]
    return [part.tolist() for order in orders for part in np.array_split(order, count)]


def length_of(run: config.Run, micro_batch: int | None) -> int:
    """Return the number of images per block: the sampler's batch, or the micro-batch if that is smaller.

    Where samplers choose their batch themselves it is a whole group.
    """
    images = run.sampling.together(run.rollout.images)
    return min(images, micro_batch or images)


def cut_into_blocks(groups: Mapping[int, tuple[int, int]], length: int) -> list[Block]:
    """Cut groups of so many images and trained steps each into blocks of at most `length` images.

    Blocks follow the groups' order; within a group, some images at all steps come first, then the next images.
    """
    return [
        Block(place=place, rows=slice(start, min(start + length, images)), k=k)
        for place, (images, steps) in groups.items()
        for start in range(0, images, length)
        for k in range(steps)
    ]


def rank_share(blocks: Sequence[Block], rank: int, ranks: int) -> list[Block]:
    """Select a rank's blocks of a mini-batch, in their order.

    Ranks' numbers of blocks differ by at most one, also among blocks with each number of images. A rank's blocks are
    adjacent, so that it unpacks few groups.
    """
    kinds: dict[int, list[int]] = {}
    for number, block in enumerate(blocks):
        kinds.setdefault(len(block), []).append(number)
    own: list[int] = []
    first = 0  # the first rank to get one block more: ranks after those that got one of another kind
    for numbers in kinds.values():
        least, more = divmod(len(numbers), ranks)
        counts = [least + ((index - first) % ranks < more) for index in range(ranks)]
        begin = sum(counts[:rank])
        own += numbers[begin : begin + counts[rank]]
        first = (first + more) % ranks
    return [blocks[number] for number in sorted(own)]


def rank_groups(run: config.Run, groups: Sequence[int], trained: int, *, step: int, rank: int, ranks: int) -> list[int]:
    """List the positions of the groups in a batch that a rank needs for update `step`.

    `groups` are their numbers of images, each at `trained` steps.
    """
    asked = run.optimizer.micro_batch
    length = length_of(run, asked if isinstance(asked, int) else None)
    found: set[int] = set()
    for part in split_groups(run.optimizer, len(groups), seed=run.seed, step=step):
        blocks = cut_into_blocks({place: (groups[place], trained) for place in part}, length)
        found.update(block.place for block in rank_share(blocks, rank, ranks))
    return sorted(found)


def fewest_blocks(run: config.Run, trained: int) -> int:
    """Count the blocks of the smallest mini-batch that ranks have to share, for groups with `trained` steps."""
    asked = run.optimizer.micro_batch
    length = length_of(run, asked if isinstance(asked, int) else None)
    return run.rollout.prompts // run.optimizer.minibatches * -(-run.rollout.images // length) * trained


def uneven_shares(run: config.Run, trained: int) -> list[str]:
    """Describe the work that cannot be shared evenly: a line each for the pairs learned and the groups sampled."""
    workers, found = run.workers, []
    ranks, blocks = workers.learner.ranks, fewest_blocks(run, trained)
    if blocks % ranks:
        least, more = blocks // ranks, blocks % ranks
        found.append(
            f"a mini-batch has {blocks} blocks (images that are sampled together, at one step): {more} of "
            f"workers.learner.ranks={ranks} learn {least + 1}, the others {least} and wait; {_fitting(blocks, ranks)} "
            "ranks share them evenly"
        )
    samplers, groups = workers.samplers.workers + ranks * workers.learner.samples, run.rollout.prompts
    if workers.samplers.max is None and groups % samplers and not run.rollout.max_staleness:
        least, more = groups // samplers, groups % samplers
        found.append(
            f"a batch has rollout.prompts={groups} groups: {more} of {samplers} processes that sample make "
            f"{least + 1}, the others {least} and wait; {_fitting(groups, samplers)} share them evenly"
        )
    return found


def _fitting(parts: int, most: int) -> int:
    """Return the largest number, at most `most`, that parts are shared by evenly."""
    return max(number for number in range(1, most + 1) if parts % number == 0)


def check_ranks(run: config.Run, trained: int) -> None:
    """Raise ConfigError if a mini-batch has fewer blocks than ranks: some would idle."""
    ranks, blocks = run.workers.learner.ranks, fewest_blocks(run, trained)
    if ranks > blocks:
        raise ConfigError(
            f"workers.learner.ranks is {ranks}, and a mini-batch has {blocks} blocks for them to share (of "
            f"{run.rollout.prompts // run.optimizer.minibatches} groups the images that are sampled together, at each "
            f"of {trained} trained steps); use at most {blocks} ranks, a smaller optimizer.minibatches or a smaller "
            "sampling.batch"
        )


def joined(shares: Iterable[Iterable[Block]]) -> list[Block]:
    """Merge the blocks of several mini-batches, each once, in the batch's order."""
    found = {block.key: block for blocks in shares for block in blocks}
    return [found[key] for key in sorted(found)]
