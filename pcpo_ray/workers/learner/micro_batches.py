"""Micro-batches: the (image, trained step) pairs that go through the network at once while one learns, and how many.

Those of one pass may be of several groups and of several steps, so their number is the hardware's choice, not the
trajectory's. The network is to predict the bits that the sampler stored, which was at another number of images: a
processor's kernels may add up in another order for another shape. So a number is only taken where it was seen to give
the same bits, and passes are made up of whole blocks: the images of a group that the sampler had through together.

Shapes: N images of a group, K trained steps, B pairs of a pass, `...` one image's latents.
"""

import itertools
import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pcpo_ray.data.tensors import Conditioning, in_one_piece, of_rows
from pcpo_ray.data.types import Trajectory
from pcpo_ray.workers.learner.mini_batches import Block
from pcpo_ray.workers.packing import PackedTrajectory

T = TypeVar("T")

MOST = 8
"""Times the images that the sampler has at once, at most: memory grows as much, and speed hardly any more."""

LONGEST = 60.0
"""Seconds after which no further number is tried."""


def blocks_per_pass(length: int, size: int | None) -> int:
    """How many blocks of `length` images make up a pass of at most `size` pairs (None: one): a power of two."""
    return 1 << max(1, (size or 1) // length).bit_length() - 1


def split(blocks: Sequence[T], count: int) -> list[list[T]]:
    """Parts of `count`, a power of two; what is left over at the end has the shape of a half, a quarter, ..., and no
    other."""
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
    """What goes through the network at once, pass for pass: all of these blocks of the groups.

    `count` of them make up a pass (`split`). A group's last block may be of fewer images; as many such make up a pass
    of their own. In the groups' order, so that few of them are needed at a time.
    """
    alike: dict[tuple[int, Hashable], list[Block]] = {}
    for block in blocks:
        alike.setdefault((len(block), shapes_of(groups[block.place])), []).append(block)
    found = [one for same in alike.values() for one in split(same, count)]
    order = {place: number for number, place in enumerate(dict.fromkeys(block.place for block in blocks))}
    return sorted(found, key=lambda blocks: (order[blocks[0].place], order[blocks[-1].place]))


def shapes_of(group: Trajectory | PackedTrajectory) -> Hashable:
    """Of a text's conditioning."""
    rows = group.conditioning.values()
    return tuple(tuple((row[1] if isinstance(row, tuple) else row).shape) for row in rows)


def steps_of(trajectory: Trajectory | PackedTrajectory) -> tuple[int, ...]:
    """As numbers, had before the trajectory is on a device, where to read them would be to wait for it."""
    return tuple(int(index) for index in trajectory.steps)


@dataclass(frozen=True, kw_only=True)
class PairBatch:
    """What one pass is made of, a row a pair; `steps` are indices into the sampler's T steps, `lengths` the blocks'.

    `indices` are each block's step, as numbers: to read them from a device would be to wait for it.
    """

    blocks: Sequence[Block]
    indices: Sequence[int]
    steps: Int[Tensor, " B"]
    latents: Float[Tensor, "B ..."]
    predictions: Float[Tensor, "B ..."]
    noises: Float[Tensor, "B ..."]
    log_probs: Float[Tensor, " B"]
    conditioning: Conditioning

    @property
    def lengths(self) -> list[int]:
        return [len(block) for block in self.blocks]

    def apart(self) -> list["PairBatch"]:
        """Each block by itself, as the sampler had it."""
        ends = itertools.accumulate(self.lengths)
        whole = [slice(end - len(block), end) for end, block in zip(ends, self.blocks, strict=True)]
        names = ("steps", "latents", "predictions", "noises", "log_probs")
        return [
            PairBatch(
                blocks=[block],
                indices=[index],
                **{name: getattr(self, name)[rows] for name in names},
                conditioning={name: value[rows] for name, value in self.conditioning.items()},
            )
            for block, index, rows in zip(self.blocks, self.indices, whole, strict=True)
        ]


@dataclass(frozen=True, kw_only=True)
class OpenedGroup:
    """A group's trajectory, or that of its images from the `first` on."""

    trajectory: Trajectory
    first: int = 0

    def rows(self, block: Block) -> slice:
        """A block's images among those that are here."""
        return slice(block.rows.start - self.first, block.rows.stop - self.first)


def gather(
    blocks: Sequence[Block], indices: Sequence[int], groups: Mapping[int, OpenedGroup], steps: Int[Tensor, " B"]
) -> PairBatch:
    """The pairs of one pass, of groups that lie open."""
    names = ("latents", "predictions", "noises", "log_probs")
    where = [(groups[one.place].trajectory, groups[one.place].rows(one), one.k) for one in blocks]
    texts = [of_rows(group.conditioning, rows, len(group)) for group, rows, _ in where]
    return PairBatch(
        blocks=blocks,
        indices=indices,
        steps=steps,
        **{name: _together([getattr(group, name)[rows, k] for group, rows, k in where]) for name in names},
        conditioning=in_one_piece({name: _together([rows[name] for rows in texts]) for name in texts[0]}),
    )


def _together(rows: Sequence[Tensor]) -> Tensor:
    # in one piece as the sampler had them: of one step among several, half precision kernels add up in another order
    return rows[0].contiguous() if len(rows) == 1 else torch.cat(tuple(rows))


def candidates(sampled: int, most: int) -> list[int]:
    """The sampler's number, and its doubles up to `most`."""
    doubles = [sampled * 2**power for power in range(int(math.log2(MOST)) + 1)]
    return [sampled, *(size for size in doubles if sampled < size <= most)]


def measure(
    sizes: Sequence[int], same: Callable[[int], bool], learn: Callable[[int], None], device: torch.device
) -> Float[Tensor, " sizes"]:
    """Seconds a pair that each of the `sizes` takes, the first being the sampler's own; inf from the first on that is
    no choice: `same` says that it gives other bits, memory is not enough, or no time is left.

    `learn` has so many pairs go forward and backward.
    """
    taken = torch.full((len(sizes),), math.inf, dtype=torch.float64)
    started = time.perf_counter()
    for place, size in enumerate(sizes):
        try:
            if place and (time.perf_counter() - started > LONGEST or not same(size)):
                break
            taken[place] = min(_seconds(learn, size, device) for _ in range(2)) / size
        except torch.OutOfMemoryError:
            break
    return taken


def _seconds(learn: Callable[[int], None], size: int, device: torch.device) -> float:
    started = time.perf_counter()
    learn(size)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
