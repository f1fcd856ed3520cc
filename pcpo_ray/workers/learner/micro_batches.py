"""Micro-batches: the (image, trained step) pairs that go through the network in one pass of the learner.

A pass may mix pairs of several groups and steps, so its size depends on the hardware and not on trajectories. The
learner must reproduce the bits of the sampler's predictions, made at another batch size: kernels may add up in another
order at another shape. So a pass is made of whole blocks, the images that the sampler passed through together, and a
size is only used where it was seen to give the same bits (autotune.py).
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

from pcpo_ray.data.types import Size, Trajectory
from pcpo_ray.workers.learner.mini_batches import Block
from pcpo_ray.workers.packing import PackedTrajectory

T = TypeVar("T")


def blocks_per_pass(length: int, size: int | None) -> int:
    """Return how many blocks of `length` images fit in a pass of `size` pairs (None: one): a power of two."""
    return 1 << max(1, (size or 1) // length).bit_length() - 1


def split(blocks: Sequence[T], count: int) -> list[list[T]]:
    """Split into parts of `count`, a power of two.

    The rest at the end is split into halves, quarters, ... of that, so that few sizes occur.
    """
    found: list[list[T]] = []
    begin = 0
    while begin < len(blocks):
        count = min(count, 1 << (len(blocks) - begin).bit_length() - 1)
        found.append(list(blocks[begin : begin + count]))
        begin += count
    return found


def passes(
    blocks: Sequence[Block], groups: Mapping[int, Trajectory | PackedTrajectory], count: int
) -> list[list[Block]]:
    """Arrange the blocks of these groups in passes of `count` blocks each (`split`).

    Blocks of one pass have one number of images, one size and one shape of texts. Passes are in the groups' order, so
    that few groups are needed at a time.
    """
    alike: dict[tuple[int, Size | None, Hashable], list[Block]] = {}
    for block in blocks:
        group = groups[block.place]
        alike.setdefault((len(block), group.size, shapes_of(group)), []).append(block)
    found = [one for same in alike.values() for one in split(same, count)]
    order = {place: number for number, place in enumerate(dict.fromkeys(block.place for block in blocks))}
    return sorted(found, key=lambda blocks: (order[blocks[0].place], order[blocks[-1].place]))


def shapes_of(group: Trajectory | PackedTrajectory) -> Hashable:
    """Return the shapes of a text's conditioning."""
    rows = group.conditioning.values()
    return tuple(tuple((row[1] if isinstance(row, tuple) else row).shape) for row in rows)


def steps_of(trajectory: Trajectory | PackedTrajectory) -> tuple[int, ...]:
    """Return the trained step indices as Python ints. Read them on the CPU: on a GPU this would synchronise."""
    return tuple(int(index) for index in trajectory.steps)
