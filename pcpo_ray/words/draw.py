"""Drawing of captions: an anti-aliased image of 24 x 64 pixels that shows the word in DejaVu Sans Mono.

Lengths are in pixels, x to the right and y down. Letters stand on whole pixels, so a letter of one size looks the same
wherever it stands.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, UInt8

from pcpo_ray.words.captions import Caption

if TYPE_CHECKING:
    from PIL import ImageFont

HEIGHT, WIDTH = 24, 64
PALETTE = {
    "red": (200, 30, 40),
    "green": (25, 120, 55),
    "blue": (35, 70, 200),
    "purple": (120, 40, 160),
    "black": (25, 25, 28),
    "yellow": (250, 220, 60),
    "white": (246, 246, 246),
}
SIZES = (16,)
"""Sizes of the font: the height of its em."""
REACH = (2, 1)
"""Pixels by which a word may stand beside and below the middle of the image."""
TONE = 8.0
"""The most that a colour's channels differ from the palette's."""

_BASELINE = 0.27  # of the size, below the middle: letters with and without tails then look centred


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Load the font, which comes with matplotlib, its licence beside it."""
    import matplotlib
    from PIL import ImageFont

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSansMono.ttf"
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


def ink_mask(word: str, size: int, dx: int = 0, dy: int = 0) -> Float[np.ndarray, "24 64"]:
    """Compute the fraction of each pixel that a word's ink covers, 0 to 1, `dx` and `dy` off the middle."""
    from PIL import Image, ImageDraw

    image = Image.new("L", (WIDTH, HEIGHT), 0)
    left = (WIDTH - round(font(size).getlength(word))) // 2
    place = (left + dx, HEIGHT // 2 + round(_BASELINE * size) + dy)
    ImageDraw.Draw(image).text(place, word, font=font(size), fill=255, anchor="ls")
    return np.asarray(image, dtype=np.float32) / 255


def draw(caption: Caption, seed: int) -> UInt8[np.ndarray, "24 64 3"]:
    """Draw an image of `caption`: the same caption and seed give the same bytes.

    The size, the place, the tones and the colours that the caption leaves open are drawn from `seed`.
    """
    rng = np.random.default_rng(seed)
    ink, paper = caption.pairs[rng.integers(len(caption.pairs))]
    size = SIZES[rng.integers(len(SIZES))]
    dx, dy = (int(rng.integers(-reach, reach + 1)) for reach in REACH)
    inked, plain = (np.clip(PALETTE[name] + rng.uniform(-TONE, TONE, size=3), 0, 255) for name in (ink, paper))
    mask = ink_mask(caption.word, size, dx, dy)[..., None]
    return np.round(mask * inked + (1 - mask) * plain).astype(np.uint8)
