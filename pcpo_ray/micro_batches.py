"""Micro-batches: the images that go through the network at once while one learns, and how many of them are best.

All of one stand at the same trained step, and may be of several groups. The network is to predict the bits that the
sampler stored, which was at another number of images: a processor's kernels may add up in another order for another
shape. So a number is only taken where it was seen to give the same bits.

Shapes: N images, K trained steps.
"""

import math
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pcpo_ray.packed import Packed
from pcpo_ray.trajectory import Conditioning, Trajectory, of_rows

MOST = 8
"""Times the images that the sampler has at once, at most: memory grows as much, and speed hardly any more."""

LONGEST = 60.0
"""Seconds after which no further number is tried."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """How many images go through at once, and the seconds an image that each number took; None where no choice."""

    size: int
    seconds: Mapping[int, float | None]

    @classmethod
    def of(cls, sizes: Sequence[int], taken: Sequence[float]) -> "Found":
        """The fastest, by what `measure` found on all ranks together."""
        seconds = {size: value if math.isfinite(value) else None for size, value in zip(sizes, taken, strict=True)}
        return cls(size=min(zip(taken, sizes, strict=True))[1], seconds=seconds)


def parts(groups: Mapping[int, tuple[int, Trajectory | Packed]], size: int | None) -> list[list[int]]:
    """The places of groups (a version and a trajectory each) whose images go through together, at most `size` of them.

    They are of one version and trained at the same steps, and 1, 2, 4, ... of them: what is left over at the end has
    the shape of a half, a quarter, ..., and no other. In the groups' order; None leaves every group alone.
    """
    if size is None:
        return [[place] for place in groups]
    alike: dict[Hashable, list[int]] = {}
    for place, (version, trajectory) in groups.items():
        rows = trajectory.conditioning.values()
        shapes = tuple(tuple((row[1] if isinstance(row, tuple) else row).shape) for row in rows)
        alike.setdefault((version, steps_of(trajectory), len(trajectory), shapes), []).append(place)
    found = []
    for left in alike.values():
        count = 1 << max(1, size // len(groups[left[0]][1])).bit_length() - 1
        while left:
            while count > len(left):
                count //= 2
            found.append(left[:count])
            left = left[count:]
    order = list(groups)
    return sorted(found, key=lambda part: order.index(part[0]))


def steps_of(trajectory: Trajectory | Packed) -> tuple[int, ...]:
    """As numbers, had before the trajectory is on a device, where to read them would be to wait for it."""
    return tuple(int(index) for index in trajectory.steps)


def join(trajectories: Sequence[Trajectory]) -> Trajectory:
    """One of all their images, with a row of conditioning each."""
    first = trajectories[0]
    if len(trajectories) == 1:
        return first
    names = ("latents", "predictions", "noises", "log_probs")
    return Trajectory(
        steps=first.steps,
        **{name: torch.cat([getattr(one, name) for one in trajectories]) for name in names},
        conditioning={name: torch.cat([one.conditioning[name] for one in trajectories]) for name in first.conditioning},
    )


def split(trajectory: Trajectory, size: int) -> Iterator[tuple[slice, Conditioning]]:
    """Rows that go through the network at once, with their conditioning."""
    for start in range(0, len(trajectory), size):
        rows = slice(start, min(start + size, len(trajectory)))
        yield rows, of_rows(trajectory.conditioning, rows, len(trajectory))


def candidates(sampled: int, images: int, groups: int) -> list[int]:
    """The sampler's number, and its doubles that groups of so many images make up without a remainder."""
    if images % sampled:
        return [sampled]
    doubles = [sampled * 2**power for power in range(int(math.log2(MOST)) + 1)]
    whole = [size for size in doubles if images % size == 0 or size % images == 0]
    return [sampled, *(size for size in whole if sampled < size <= images * groups)]


def measure(
    sizes: Sequence[int], same: Callable[[int], bool], learn: Callable[[int], None], device: torch.device
) -> Float[Tensor, " sizes"]:
    """Seconds an image that each of the `sizes` takes, the first being the sampler's own; inf from the first on that is
    no choice: `same` says that it gives other bits, memory is not enough, or no time is left.

    `learn` has so many images go forward and backward.
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
