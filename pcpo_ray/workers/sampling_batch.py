"""The sampling batch that is chosen: how many images pass through the network at once (sampling.batch=auto)."""

import logging
import math
from collections.abc import Callable

import torch

from pcpo_ray.workers.timing import seconds_of

log = logging.getLogger(__name__)


def candidates(images: int) -> list[int]:
    """List a whole group, its half, its quarter and so on, down to one image."""
    found = [images]
    while found[-1] > 1:
        found.append(-(-found[-1] // 2))
    return found


def choose(images: int, predict: Callable[[int], object], device: torch.device) -> int:
    """Choose the fastest batch for so many images: `predict` makes one prediction of a batch.

    A batch for which memory is short is no choice. Raises torch.OutOfMemoryError if it is short for a single image.
    """
    seconds: dict[int, float] = {}
    failure: torch.OutOfMemoryError | None = None
    for size in candidates(images):
        try:
            seconds[size] = min(seconds_of(predict, size, device) for _ in range(2)) / size
        except torch.OutOfMemoryError as error:
            failure = error
            seconds[size] = math.inf
    chosen = min(seconds, key=lambda size: seconds[size])
    if seconds[chosen] == math.inf:
        assert failure is not None
        raise failure
    log.info("sampling.batch=auto: %d images at once, of %s", chosen, _told(seconds))
    return chosen


def _told(seconds: dict[int, float]) -> str:
    return ", ".join(f"{size}: {value:.3g} s an image" for size, value in seconds.items())
