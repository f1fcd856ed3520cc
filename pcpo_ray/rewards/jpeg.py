"""JPEG (in)compressibility (DDPO, arXiv 2305.13301): the size of the JPEG file, 4:2:0, in kB of 1000 bytes."""

import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8


class Jpeg:
    """sign * kB; sign -1 rewards compressibility."""

    def __init__(self, *, sign: int, quality: int = 95) -> None:
        self.sign = sign
        self.quality = quality

    def score(self, images: UInt8[np.ndarray, "N H W 3"], prompts: Sequence[str]) -> list[float]:
        return [self.sign * self._kilobytes(image) for image in images]

    def _kilobytes(self, image: UInt8[np.ndarray, "H W 3"]) -> float:
        from PIL import Image

        file = io.BytesIO()
        Image.fromarray(image).save(file, format="JPEG", quality=self.quality)
        return file.tell() / 1000
