"""Sampled images as one image: a sheet with rows, labels and gaps, or a grid of the strengths of adapters."""

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont, ImageFont

LEAST = 160
"""Pixels that an image is at least wide on a sheet; smaller ones are magnified by a whole number."""

GAP, MARGIN = 8, 12
TEXT, LABEL = 18, 14
"""Heights of the prompt's and the labels' letters, in pixels."""

PAPER, INK, FAINT = (255, 255, 255), (20, 20, 20), (110, 110, 110)


def sheet(
    rows: Sequence[tuple[str, Sequence[UInt8[np.ndarray, "H W 3"]]]], title: str, names: Sequence[str] = ()
) -> bytes:
    """Lay rows of images out as one PNG, each with its label; `names` stand below the last row, one an image."""
    from PIL import Image, ImageDraw, ImageFont

    height, width = rows[0][1][0].shape[:2]
    times = max(1, math.ceil(LEAST / width))
    high, wide = height * times, width * times
    count = max(len(images) for _, images in rows)
    font, small = ImageFont.load_default(TEXT), ImageFont.load_default(LABEL)
    across = 2 * MARGIN + count * wide + (count - 1) * GAP
    lines = _wrapped(title, font, across - 2 * MARGIN)
    top = MARGIN + len(lines) * (TEXT + 6) + 4
    each = LABEL + 8 + high + GAP
    below = LABEL + 8 if names else 0
    image = Image.new("RGB", (across, top + len(rows) * each + below + MARGIN - GAP), PAPER)
    draw = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        draw.text((MARGIN, MARGIN + number * (TEXT + 6)), line, INK, font)
    for number, (label, images) in enumerate(rows):
        y = top + number * each
        draw.text((MARGIN, y), label, FAINT, small)
        for place, one in enumerate(images):
            drawn = Image.fromarray(one).resize((wide, high), Image.Resampling.NEAREST)
            image.paste(drawn, (MARGIN + place * (wide + GAP), y + LABEL + 6))
    for place, name in enumerate(names):
        draw.text((MARGIN + place * (wide + GAP), top + len(rows) * each - 2), name, FAINT, small)
    written = io.BytesIO()
    image.save(written, format="png")
    return written.getvalue()


def grid(
    cells: Sequence[Sequence[UInt8[np.ndarray, "N H W 3"]]], rows: Sequence[str], columns: Sequence[str], title: str
) -> bytes:
    """Draw the cells, each its images side by side, as one PNG with the strengths along its edges."""
    from matplotlib.figure import Figure

    joined = [[np.concatenate(list(images), axis=1) for images in row] for row in cells]
    height, width = joined[0][0].shape[:2]
    size = (1.0 + 1.6 * len(columns) * width / height, 0.7 + 1.6 * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for r, row in enumerate(joined):
        for c, cell in enumerate(row):
            axes[r][c].imshow(cell, interpolation="nearest")
            axes[r][c].set(xticks=[], yticks=[])
        axes[r][0].set_ylabel(rows[r])
    for c, name in enumerate(columns):
        axes[0][c].set_title(name, fontsize="medium")
    figure.suptitle(title)
    written = io.BytesIO()
    figure.savefig(written, dpi=150, format="png")
    return written.getvalue()


def _wrapped(text: str, font: "FreeTypeFont | ImageFont", width: int) -> list[str]:
    """Break a text into lines that fit."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines or [""]
