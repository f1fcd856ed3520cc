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

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pcpo_ray.packed import Packed
from pcpo_ray.trajectory import Conditioning, Trajectory, in_one_piece, of_rows

MOST = 8
"""Times the images that the sampler has at once, at most: memory grows as much, and speed hardly any more."""

LONGEST = 60.0
"""Seconds after which no further number is tried."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """How many pairs go through at once, and the seconds a pair that each number took; None where no choice."""

    size: int
    seconds: Mapping[int, float | None]

    @classmethod
    def of(cls, sizes: Sequence[int], taken: Sequence[float]) -> "Found":
        """The fastest, by what `measure` found on all ranks together."""
        seconds = {size: value if math.isfinite(value) else None for size, value in zip(sizes, taken, strict=True)}
        return cls(size=min(zip(taken, sizes, strict=True))[1], seconds=seconds)


@dataclass(frozen=True, kw_only=True)
class Block:
    """Images of the group at `place`, at its k-th trained step, `index` of all."""

    place: int
    rows: slice
    k: int
    index: int

    def __len__(self) -> int:
        length: int = self.rows.stop - self.rows.start
        return length


def passes(groups: Mapping[int, Trajectory | Packed], sampled: int | None, size: int | None) -> list[list[Block]]:
    """What goes through the network at once, pass for pass: together every image of the groups at every trained step.

    Blocks are of `sampled` images (None: the whole group), and 1, 2, 4, ... of them make up at most `size` pairs: what
    is left over at the end has the shape of a half, a quarter, ..., and no other. A group's last block may be of fewer
    images; as many such make up a pass of their own. `size` None leaves each block alone; one below `sampled` cuts
    blocks of its own. In the groups' order, so that few of them are needed at a time.
    """
    alike: dict[tuple[int, int, Hashable], list[Block]] = {}
    for place, group in groups.items():
        count = len(group)
        length = min(count if sampled is None else sampled, count if size is None else size)
        for start in range(0, count, length):
            rows = slice(start, min(start + length, count))
            blocks = [Block(place=place, rows=rows, k=k, index=index) for k, index in enumerate(steps_of(group))]
            alike.setdefault((length, len(blocks[0]), shapes_of(group)), []).extend(blocks)
    found = []
    for (length, *_), left in alike.items():
        count = 1 << max(1, (size or 1) // length).bit_length() - 1
        while left:
            while count > len(left):
                count //= 2
            found.append(left[:count])
            left = left[count:]
    order = {place: number for number, place in enumerate(groups)}
    return sorted(found, key=lambda blocks: (order[blocks[0].place], order[blocks[-1].place]))


def shapes_of(group: Trajectory | Packed) -> Hashable:
    """Of a text's conditioning."""
    rows = group.conditioning.values()
    return tuple(tuple((row[1] if isinstance(row, tuple) else row).shape) for row in rows)


def steps_of(trajectory: Trajectory | Packed) -> tuple[int, ...]:
    """As numbers, had before the trajectory is on a device, where to read them would be to wait for it."""
    return tuple(int(index) for index in trajectory.steps)


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """What one pass is made of, a row a pair; `steps` are indices into the sampler's T steps, `lengths` the blocks'."""

    blocks: Sequence[Block]
    steps: Int[Tensor, " B"]
    latents: Float[Tensor, "B ..."]
    predictions: Float[Tensor, "B ..."]
    noises: Float[Tensor, "B ..."]
    log_probs: Float[Tensor, " B"]
    conditioning: Conditioning

    @property
    def lengths(self) -> list[int]:
        return [len(block) for block in self.blocks]

    def apart(self) -> list["Pairs"]:
        """Each block by itself, as the sampler had it."""
        ends = itertools.accumulate(self.lengths)
        whole = [slice(end - len(block), end) for end, block in zip(ends, self.blocks, strict=True)]
        names = ("steps", "latents", "predictions", "noises", "log_probs")
        return [
            Pairs(
                blocks=[block],
                **{name: getattr(self, name)[rows] for name in names},
                conditioning={name: value[rows] for name, value in self.conditioning.items()},
            )
            for block, rows in zip(self.blocks, whole, strict=True)
        ]


def gather(blocks: Sequence[Block], groups: Mapping[int, Trajectory], steps: Int[Tensor, " B"]) -> Pairs:
    """The pairs of one pass, of groups that lie open."""
    names = ("latents", "predictions", "noises", "log_probs")
    texts = [of_rows(groups[one.place].conditioning, one.rows, len(groups[one.place])) for one in blocks]
    return Pairs(
        blocks=blocks,
        steps=steps,
        **{name: _together([getattr(groups[one.place], name)[one.rows, one.k] for one in blocks]) for name in names},
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
