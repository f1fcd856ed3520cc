"""The grain of a picture's surfaces, which has nothing to do with what is where in it.

    r = y - [1 2 1; 2 4 2; 1 2 1] / 16 * y        what a small blur takes away, in each channel, 0..255
    grain = mean of the lowest three quarters of |r| / (0.5149 sqrt(0.640625))

over all channels and pixels that have eight neighbours. Things' edges are in the highest quarter, so pictures of flat
things have grain 0, whatever they show. White Gaussian noise of deviation s has a grain of s: 0.640625 is the sum of
r's squared taps, 0.5149 the mean of |N(0, 1)| below its upper quartile.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

from pcpo_ray.rewards.pictures import rgb

SURFACE = 0.75
"""Share of |r| that counts."""

WHITE = 0.5149033339461041 * math.sqrt(0.640625)
"""Mean of that share in white noise of deviation 1."""


class Grain:
    """How much grain there is; a negative `weight` in the config smooths."""

    def score(self, images: UInt8[np.ndarray, "N H W 3"], prompts: Sequence[str]) -> list[float]:
        return [grain(np.asarray(picture, np.float64)) for picture in rgb(images)]


def grain(picture: Float[np.ndarray, "H W 3"]) -> float:
    """In levels of the picture's numbers; NaN for a picture in which no pixel has eight neighbours."""
    if min(picture.shape[:2]) < 3:
        return math.nan
    rows = (picture[:-2] + 2 * picture[1:-1] + picture[2:]) / 4
    blurred = (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 4
    taken = np.sort(np.abs(picture[1:-1, 1:-1] - blurred), axis=None)
    return float(np.mean(taken[: math.ceil(SURFACE * taken.size)])) / WHITE
