"""The strength of regular straight lines in an image: grids, tile seams, blocks, and other artefacts that repeat.

d_b,x = median over the rows y of band b of (L[y, x-1] - 2 L[y, x] + L[y, x+1]) / 2       of the luminance L, 0..255
s_x = median over all bands b of |d_b,x|
grid = max over periods p >= 4 and phases f of   median of s_f, s_f+p, s_f+2p, ...  -  median of all s

and the same along the rows; the larger counts. Bands are 32 rows high. Lines one pixel wide of A levels have about A.
The median within a band takes out noise and texture; that over bands, edges shorter than half the image; that over at
least three lines, single ones such as a horizon. So a seam between two tiles alone is not seen, nor are seams in strong
noise, and regular lines that the prompt asks for (a fence) are.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

from pcpo_ray.rewards.images import rgb

SHORTEST, FEWEST = 4, 3
"""The shortest period in pixels, and the fewest lines that make a pattern."""

BAND = 32
"""Rows of a band."""


class Grid:
    """The measure as a reward; higher is worse."""

    def score(self, images: UInt8[np.ndarray, "N H W 3"], prompts: Sequence[str]) -> list[float]:
        return [grid(np.asarray(image.convert("L"), np.float64)) for image in rgb(images)]


def grid(luminance: Float[np.ndarray, "H W"]) -> float:
    """Compute the strength of regular lines in levels; NaN for an image too small to have three of them."""
    if min(luminance.shape) < FEWEST * SHORTEST + 2:
        return math.nan
    return max(_lines(luminance), _lines(luminance.T))


def _lines(luminance: Float[np.ndarray, "H W"]) -> float:
    """Compute the strength of regular vertical lines."""
    curved = (luminance[:, :-2] - 2 * luminance[:, 1:-1] + luminance[:, 2:]) / 2
    bands = np.array_split(curved, max(1, len(curved) // BAND))
    strength = np.median([np.abs(np.median(band, axis=0)) for band in bands], axis=0)
    strongest = 0.0
    for period in range(SHORTEST, len(strength) // FEWEST + 1):
        lines = strength[: len(strength) // period * period].reshape(-1, period)
        strongest = max(strongest, float(np.median(lines, axis=0).max()))
    return max(0.0, strongest - float(np.median(strength)))
