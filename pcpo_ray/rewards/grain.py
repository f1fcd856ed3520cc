"""The grain of a picture's surfaces, which has nothing to do with what is where in it.

    r = y - [1 2 1; 2 4 2; 1 2 1] / 16 * y        what a small blur takes away, in each channel, 0..255
    grain = median |r| / (0.6745 sqrt(0.640625))

over all channels and pixels that have eight neighbours. White Gaussian noise of deviation s has a grain of s: 0.640625
is the sum of r's squared taps, 0.6745 the median of |N(0, 1)|. As it is a median, the edges of things do not count while
they cover much less than half of the picture.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

from pcpo_ray.rewards.pictures import rgb

WHITE = 0.6744897501960817 * math.sqrt(0.640625)
"""Median of |r| in white noise of deviation 1."""


class Grain:
    """Minus the grain: 0 for flat surfaces."""

    def score(self, images: UInt8[np.ndarray, "N H W 3"], prompts: Sequence[str]) -> list[float]:
        return [-grain(np.asarray(picture, np.float64)) for picture in rgb(images)]


def grain(picture: Float[np.ndarray, "H W 3"]) -> float:
    """In levels of the picture's numbers; NaN for a picture in which no pixel has eight neighbours."""
    if min(picture.shape[:2]) < 3:
        return math.nan
    rows = (picture[:-2] + 2 * picture[1:-1] + picture[2:]) / 4
    blurred = (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 4
    return float(np.median(np.abs(picture[1:-1, 1:-1] - blurred))) / WHITE
