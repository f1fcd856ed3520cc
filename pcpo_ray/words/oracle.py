"""The oracle: it looks at an image without a network. How like the font's own are its letters, which colours has it?

What a recogniser likes and eyes do not is seen here: letters of other strokes, words in other colours. The paper is the
colour of the border. Ink is what differs from it, as far as it lies on the line from the paper to the image's
strongest tone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float, UInt8

from pcpo_ray.errors import RewardError
from pcpo_ray.words.captions import parse
from pcpo_ray.words.draw import HEIGHT, PALETTE, SIZES, WIDTH, ink_mask

CONTRAST = 60.0
"""RGB distance between ink and paper below which an image shows nothing."""
QUIET_BORDER = 25.0
"""Mean absolute deviation of the border from one colour, above which an image has no paper."""
FULL = 0.8
"""The fraction of the strongest difference from the paper from which a pixel is all ink."""
COLOUR_REACH = 80.0
"""RGB distance beyond which a colour has no name."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """An image's word and colours. `ink` and `paper` are None if no colour of the palette comes close.

    `likeness` is the overlap of its ink with the word in the font, at the size and place that fit best, 0 to 1: the sum
    of the smaller coverage of each pixel over the sum of the larger. `x` and `y` are the middle of the ink, in pixels.
    """

    ink: str | None
    paper: str | None
    likeness: float
    x: float
    y: float


@dataclass(frozen=True, kw_only=True)
class Ink:
    """The ink and the paper that make up any image. `tone` is the ink's RGB less that of the paper.

    `cover` is the fraction of each pixel that is ink, `x` and `y` the middle of that. `strongest` is the largest RGB
    distance of a pixel from the paper, `unrest` the border's mean absolute deviation from it. An image of one colour is
    all paper.
    """

    paper: Float[np.ndarray, "3"]
    tone: Float[np.ndarray, "3"]
    cover: Float[np.ndarray, "24 64"]
    x: float
    y: float
    strongest: float
    unrest: float


def ink(image: UInt8[np.ndarray, "24 64 3"]) -> Ink:
    """Split an image (an array or of PIL) into ink and paper. Raises RewardError for anything but 24 x 64 RGB."""
    pixels = np.asarray(image)
    if pixels.shape != (HEIGHT, WIDTH, 3) or pixels.dtype != np.uint8:
        raise RewardError(
            f"got an image of shape {pixels.shape} and type {pixels.dtype}, expected {HEIGHT} x {WIDTH} x 3 bytes"
        )
    rgb = pixels.astype(np.float32)
    border = np.concatenate([rgb[0], rgb[-1], rgb[:, 0], rgb[:, -1]])
    paper = np.median(border, axis=0)
    offset = rgb - paper
    strength = np.linalg.norm(offset, axis=2)
    tone = offset[strength >= FULL * strength.max()].mean(axis=0)
    cover = np.clip(offset @ tone / (tone @ tone), 0, 1) if strength.any() else np.zeros_like(strength)
    weights = cover if cover.any() else np.ones_like(cover)
    return Ink(
        paper=paper,
        tone=tone,
        cover=cover,
        x=float(weights.sum(axis=0) @ np.arange(WIDTH) / weights.sum()),
        y=float(weights.sum(axis=1) @ np.arange(HEIGHT) / weights.sum()),
        strongest=float(strength.max()),
        unrest=float(np.abs(border - paper).mean()),
    )


def read(image: UInt8[np.ndarray, "24 64 3"], word: str) -> Seen | None:
    """Look for a word in an image (an array or a PIL image); None if it has no paper or no ink.

    Raises RewardError for anything but 24 x 64 RGB bytes.
    """
    found = ink(image)
    if found.unrest > QUIET_BORDER or found.strongest < CONTRAST:
        return None
    return Seen(
        ink=_colour(found.paper + found.tone),
        paper=_colour(found.paper),
        likeness=max(_overlap(found.cover, _letters(word, size)) for size in SIZES),
        x=found.x,
        y=found.y,
    )


def letters(image: UInt8[np.ndarray, "24 64 3"], caption: str) -> float:
    """Compute how like the font's own the letters of the caption's word are, 0 (no word) to 1.

    Raises PromptError for another text than a caption, and RewardError for an image of another size.
    """
    seen = read(image, parse(caption).word)
    return 0.0 if seen is None else seen.likeness


def colours(image: UInt8[np.ndarray, "24 64 3"], caption: str) -> float:
    """Compute the fraction of the colours that the caption names which the image shows; 1 if it names none.

    Raises as `letters` does.
    """
    asked = parse(caption)
    seen = read(image, asked.word)
    shown = (None, None) if seen is None else (seen.ink, seen.paper)
    held = [one == other for one, other in zip((asked.ink, asked.paper), shown, strict=True) if one is not None]
    return sum(held) / len(held) if held else 1.0


def _colour(rgb: Float[np.ndarray, "3"]) -> str | None:
    distances = {name: float(np.linalg.norm(rgb - np.array(tone))) for name, tone in PALETTE.items()}
    nearest = min(distances, key=lambda name: distances[name])
    return nearest if distances[nearest] <= COLOUR_REACH else None


@lru_cache(maxsize=4096)
def _letters(word: str, size: int) -> Float[np.ndarray, "h w"]:
    """Compute the coverage of a word in the font, cut to its own edges."""
    mask = ink_mask(word, size)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _overlap(cover: Float[np.ndarray, "24 64"], letters: Float[np.ndarray, "h w"]) -> float:
    """Compute the best overlap of an image's coverage with that of letters, over all places for these."""
    windows = np.lib.stride_tricks.sliding_window_view(cover, letters.shape)
    shared = np.minimum(windows, letters).sum(axis=(2, 3))
    return float((shared / (cover.sum() + letters.sum() - shared)).max())
