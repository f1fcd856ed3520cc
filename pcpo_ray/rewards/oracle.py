"""The oracles of the embedded worlds as rewards: each scores images of its own world's captions only."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8


class Oracle(ABC):
    """An oracle as a reward. A prompt that it does not read, as it is no caption of its world, has no score (NaN)."""

    @staticmethod
    @abstractmethod
    def reads(prompt: str) -> bool:
        """Return whether a prompt is a caption of the oracle's world."""

    def score(self, images: UInt8[np.ndarray, "N H W 3"], prompts: Sequence[str]) -> list[float]:
        return [
            self._score(image, prompt) if self.reads(prompt) else math.nan
            for image, prompt in zip(images, prompts, strict=True)
        ]

    @abstractmethod
    def _score(self, image: UInt8[np.ndarray, "H W 3"], prompt: str) -> float:
        """Score the image of a caption."""
