"""Distances between the images of one prompt in the words world: of the word's places, or of its colours."""

from typing import Literal, assert_never

import numpy as np
from jaxtyping import UInt8


class WordsSpread:
    """An image's mean distance to the other images of its prompt; NaN for a group's only image.

    `words_places` compares the middle of the ink, in pixels. `words_tones` compares ink and paper: the root of the mean
    square over their six channels, in levels of 0..255.
    """

    def __init__(self, kind: Literal["words_places", "words_tones"]) -> None:
        self.kind = kind

    def score_group(self, images: UInt8[np.ndarray, "N H W 3"], prompt: str) -> list[float]:
        from pcpo_ray.words import oracle

        seen = [oracle.ink(image) for image in images]
        match self.kind:
            case "words_places":
                points = np.array([(one.x, one.y) for one in seen])
            case "words_tones":
                points = np.array([np.concatenate([one.paper, one.paper + one.tone]) for one in seen]) / 6**0.5
            case _:
                assert_never(self.kind)
        if len(points) < 2:
            return [float("nan")] * len(points)
        distances = np.linalg.norm(points[:, None] - points, axis=2)
        return [float(value) for value in distances.sum(axis=1) / (len(points) - 1)]
