"""Drawing of captions: an anti-aliased image of 64 x 64 pixels in which every stated fact plainly holds.

Lengths are in pixels, x to the right and y down. The place of a thing is the middle of its bounding square, whose side
is twice its radius.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, UInt8

from pcpo_ray.shapes.captions import Caption

if TYPE_CHECKING:
    from PIL import ImageDraw

SIDE = 64
PALETTE = {
    "red": (220, 40, 45),
    "orange": (245, 140, 25),
    "yellow": (245, 220, 40),
    "green": (45, 160, 70),
    "cyan": (40, 195, 215),
    "blue": (45, 75, 210),
    "purple": (145, 60, 180),
    "black": (30, 30, 32),
}
RADII = {"small": (6.0, 8.0), "large": (11.0, 13.5)}

_OVERSAMPLING = 4
_MARGIN = 2.0  # free pixels between a thing and the image's edge
_GAP = 4.0  # free pixels between the bounding squares of two things
_CENTRE = SIDE / 2


def _star() -> list[tuple[float, float]]:
    angles = [math.pi * (k / 5 - 0.5) for k in range(10)]
    points = [
        ((1.0 if k % 2 == 0 else 0.45) * math.cos(a), math.sin(a) * (1.0 if k % 2 == 0 else 0.45))
        for k, a in enumerate(angles)
    ]
    low, high = min(y for _, y in points), max(y for _, y in points)
    wide = max(x for x, _ in points)
    return [(x / wide, 2 * (y - low) / (high - low) - 1) for x, y in points]


_ARM = 0.34
_POLYGONS: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.92, -0.92), (0.92, -0.92), (0.92, 0.92), (-0.92, 0.92)],
    "triangle": [(0.0, -1.0), (1.0, 0.92), (-1.0, 0.92)],
    "star": _star(),
    "cross": [
        (-_ARM, -1),
        (_ARM, -1),
        (_ARM, -_ARM),
        (1, -_ARM),
        (1, _ARM),
        (_ARM, _ARM),
        (_ARM, 1),
        (-_ARM, 1),
        (-_ARM, _ARM),
        (-1, _ARM),
        (-1, -_ARM),
        (-_ARM, -_ARM),
    ],
}
_HOLE = 0.55  # inner over outer radius of a ring


def paint(
    canvas: ImageDraw.ImageDraw,
    shape: str,
    place: tuple[float, float],
    radius: float,
    fill: tuple[int, ...] | int,
    hole: tuple[int, ...] | int,
) -> None:
    """Paint one shape, in the canvas's own pixels; `hole` is the colour inside a ring."""
    x, y = place
    if shape in _POLYGONS:
        canvas.polygon([(x + radius * dx, y + radius * dy) for dx, dy in _POLYGONS[shape]], fill=fill)
        return
    canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
    if shape == "ring":
        inner = _HOLE * radius
        canvas.ellipse((x - inner, y - inner, x + inner, y + inner), fill=hole)


def _one_place(rng: np.random.Generator, position: str | None, radius: float) -> tuple[float, float]:
    near, far = radius + _MARGIN, SIDE - radius - _MARGIN
    x, y = rng.uniform(near, far, size=2)
    if position == "in the center":
        x, y = rng.uniform(_CENTRE - 4, _CENTRE + 4, size=2)
    elif position in ("at the top", "at the bottom"):
        y = rng.uniform(near, max(near, 20.0))
        y = SIDE - y if position == "at the bottom" else y
    elif position in ("at the left", "at the right"):
        x = rng.uniform(near, max(near, 20.0))
        x = SIDE - x if position == "at the right" else x
    return float(x), float(y)


def _two_places(rng: np.random.Generator, relation: str, radii: tuple[float, float]) -> list[tuple[float, float]]:
    """Draw two places along one axis, in the relation's order, with a smaller offset across it."""
    axes = {"above": (1, 1), "below": (1, -1), "to the left of": (0, 1), "to the right of": (0, -1)}
    axis, order = axes[relation] if relation in axes else (int(rng.integers(2)), int(rng.choice((1, -1))))
    before, after = radii if order == 1 else radii[::-1]
    slack = SIDE - 2 * (before + after + _MARGIN) - _GAP
    left, between, _ = rng.dirichlet((1.0, 1.0, 1.0)) * slack
    start = _MARGIN + before + left
    end = start + before + _GAP + between + after
    reach = 0.5 * (end - start)
    bounds = [(radius + _MARGIN, SIDE - radius - _MARGIN) for radius in (before, after)]
    across = rng.uniform(*bounds[0])
    other = rng.uniform(max(bounds[1][0], across - reach), min(bounds[1][1], across + reach))
    places = [(start, across), (end, other)]
    if axis == 1:
        places = [(y, x) for x, y in places]
    return places if order == 1 else places[::-1]


def draw(caption: Caption, seed: int) -> UInt8[np.ndarray, "64 64 3"]:
    """Draw an image of `caption`: the same caption and seed give the same bytes.

    Sizes, places and tones that the caption leaves open are drawn from `seed`.
    """
    from PIL import Image, ImageDraw

    rng = np.random.default_rng(seed)
    tone = rng.uniform(212, 246)
    background = np.clip(tone + rng.uniform(-6, 6, size=3), 0, 255)
    sizes = [thing.size or str(rng.choice(list(RADII))) for thing in caption.things]
    radii = [float(rng.uniform(*RADII[size])) for size in sizes]
    if caption.relation is None:
        places = [_one_place(rng, caption.position, radii[0])]
    else:
        places = _two_places(rng, caption.relation, (radii[0], radii[1]))

    image = Image.new("RGB", (SIDE * _OVERSAMPLING,) * 2, _rgb(background))
    canvas = ImageDraw.Draw(image)
    for thing, radius, (x, y) in zip(caption.things, radii, places, strict=True):
        fill = _rgb(np.array(PALETTE[thing.colour]) + rng.uniform(-10, 10, size=3))
        scaled = (x * _OVERSAMPLING, y * _OVERSAMPLING)
        paint(canvas, thing.shape, scaled, radius * _OVERSAMPLING, fill, _rgb(background))
    return np.asarray(image.reduce(_OVERSAMPLING))


def shape_mask(shape: str, place: tuple[float, float], radius: float, side: int) -> Float[np.ndarray, "side side"]:
    """Compute the fraction of each pixel that a shape covers, 0 to 1."""
    from PIL import Image, ImageDraw

    image = Image.new("L", (side * _OVERSAMPLING,) * 2, 0)
    scaled = (place[0] * _OVERSAMPLING, place[1] * _OVERSAMPLING)
    paint(ImageDraw.Draw(image), shape, scaled, radius * _OVERSAMPLING, 255, 0)
    return np.asarray(image.reduce(_OVERSAMPLING), dtype=np.float32) / 255


def _rgb(colour: np.ndarray) -> tuple[int, int, int]:
    red, green, blue = (round(float(c)) for c in np.clip(colour, 0, 255))
    return red, green, blue
