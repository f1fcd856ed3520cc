"""JPEG (in)compressibility (DDPO, arXiv 2305.13301): the size of the JPEG file, 4:2:0, in kB of 1000 bytes."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from pcpo_ray.rewards.images import rgb


class Jpeg:
    """The reward sign * kB; sign -1 rewards compressibility."""

    def __init__(self, *, sign: int, quality: int = 95) -> None:
        self.sign = sign
        self.quality = quality

    def score(self, images: UInt8[np.ndarray, "N H W 3"], prompts: Sequence[str]) -> list[float]:
        return [self.sign * self._kilobytes(image) for image in rgb(images)]

    def _kilobytes(self, image: Any) -> float:
        file = io.BytesIO()
        image.save(file, format="JPEG", quality=self.quality)
        return file.tell() / 1000
