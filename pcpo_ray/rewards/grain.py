"""The grain of an image's surfaces, independent of its content.

    r = y - [1 2 1; 2 4 2; 1 2 1] / 16 * y        the detail that a small blur removes, per channel, 0..255
    grain = mean of the lowest three quarters of |r| / (0.5149 sqrt(0.640625))

over all channels and pixels that have eight neighbours. Edges of objects are in the highest quarter, so images of flat
objects have grain 0, whatever they show. White Gaussian noise of std s has a grain of s: 0.640625 is the sum of r's
squared taps, 0.5149 the mean of |N(0, 1)| below its upper quartile.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

from pcpo_ray.rewards.images import rgb

SURFACE = 0.75
"""The fraction of |r| that counts, from the smallest."""

WHITE = 0.5149033339461041 * math.sqrt(0.640625)
"""The mean of that fraction in white noise of std 1."""


class Grain:
    """The grain as a reward; a negative `weight` in the config smooths."""

    def score(self, images: UInt8[np.ndarray, "N H W 3"], prompts: Sequence[str]) -> list[float]:
        return [grain(np.asarray(image, np.float64)) for image in rgb(images)]


def grain(image: Float[np.ndarray, "H W 3"]) -> float:
    """Compute the grain in the image's levels; NaN if no pixel has eight neighbours."""
    if min(image.shape[:2]) < 3:
        return math.nan
    rows = (image[:-2] + 2 * image[1:-1] + image[2:]) / 4
    blurred = (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 4
    taken = np.sort(np.abs(image[1:-1, 1:-1] - blurred), axis=None)
    return float(np.mean(taken[: math.ceil(SURFACE * taken.size)])) / WHITE
