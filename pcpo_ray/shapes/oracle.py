"""The oracle: it reads an image of the embedded world and tells which of a caption's facts hold in it.

The background is the colour of the border. Pixels that differ from it are cut into connected things. Each thing gets
the nearest palette colour and the shape of the best template, or none if nothing comes close: a blob counts as a thing
without a shape. An image of noise or of one tone therefore shows nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import pairwise, permutations

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from pcpo_ray.errors import RewardError
from pcpo_ray.shapes.captions import SHAPES, Caption, Thing, parse
from pcpo_ray.shapes.draw import PALETTE, SIDE, shape_mask

CONTRAST = 45.0  # RGB distance from the background at which a pixel belongs to a thing
QUIET_BORDER = 20.0  # mean absolute deviation of the border, above which an image has no background
LEAST_AREA = 25.0  # pixels; the smallest drawn thing covers 75
COLOUR_REACH = 80.0  # RGB distance beyond which a colour has no name
SHAPE_REACH = 0.72  # least overlap (intersection over union) with a template
SMALL_BELOW = 19.0  # extent in pixels; drawn things measure 12 to 16 or 22 to 27
MOST_THINGS = 6
LAYOUT = ("count", "relation", "position")

_GRID = 20


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One thing in an image. `shape` and `colour` are None if no shape or no palette colour comes close.

    `x` and `y` are the middle of its bounding box and `extent` the box's longer side, in pixels. `match` is the overlap
    with the best template, 0 to 1.
    """

    shape: str | None
    colour: str | None
    x: float
    y: float
    extent: float
    match: float

    @property
    def size(self) -> str:
        """The size, by the extent."""
        return "small" if self.extent < SMALL_BELOW else "large"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The facts of a caption that hold: count; object, colour and size of each thing; relation or position."""

    facts: dict[str, bool]

    @property
    def accuracy(self) -> float:
        """The fraction of the facts that hold, 0 to 1."""
        return sum(self.facts.values()) / len(self.facts)

    @property
    def layout(self) -> float:
        """The fraction of the layout facts that hold: the count, and the relation or position if there is one."""
        found = [held for fact, held in self.facts.items() if fact in LAYOUT]
        return sum(found) / len(found)

    @property
    def right(self) -> bool:
        """True if all facts hold."""
        return all(self.facts.values())


def connected(mask: Bool[np.ndarray, "H W"]) -> Int[np.ndarray, "H W"]:
    """Number the connected regions of a mask 1, 2, ...; 0 elsewhere. Diagonal neighbours touch."""
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(edges == 1)
    ends = np.nonzero(edges == -1)[1]
    runs = list(zip(rows.tolist(), starts.tolist(), ends.tolist(), strict=True))
    parent = list(range(len(runs)))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = parent[parent[run]]
            run = parent[run]
        return run

    first_above = 0
    for index, (row, start, end) in enumerate(runs):
        while runs[first_above][0] < row - 1 or (runs[first_above][0] == row - 1 and runs[first_above][2] < start):
            first_above += 1
        above = first_above
        while runs[above][0] == row - 1 and runs[above][1] <= end:
            parent[root(index)] = root(above)
            above += 1

    labels = np.zeros(mask.shape, dtype=np.int64)
    numbers: dict[int, int] = {}
    for index, (row, start, end) in enumerate(runs):
        labels[row, start:end] = numbers.setdefault(root(index), len(numbers) + 1)
    return labels


def _span(profile: Float[np.ndarray, "N"]) -> tuple[float, float]:
    """Find the first and last point of a coverage profile, to a fraction of a pixel."""
    covered = np.flatnonzero(profile > 0.1)
    first, last = covered[0], covered[-1]
    return first + 1 - float(profile[first]), last + float(profile[last])


def _box(cover: Float[np.ndarray, "H W"]) -> tuple[float, float, float, float]:
    (left, right), (top, bottom) = _span(cover.max(axis=0)), _span(cover.max(axis=1))
    return left, top, right, bottom


def _normalised(cover: Float[np.ndarray, "H W"], box: tuple[float, float, float, float]) -> Float[np.ndarray, "G"]:
    """Resample coverage so that the box's longer side fills a fixed grid, and flatten it."""
    from PIL import Image

    left, top, right, bottom = box
    half = max(right - left, bottom - top) / 2
    x, y = (left + right) / 2 + SIDE, (top + bottom) / 2 + SIDE
    padded = Image.fromarray(np.pad(cover, SIDE).astype(np.float32))
    window = (x - half, y - half, x + half, y + half)
    small = padded.resize((_GRID, _GRID), Image.Resampling.BILINEAR, box=window)
    return np.asarray(small, dtype=np.float32).ravel()


@cache
def _templates() -> tuple[tuple[str, ...], Float[np.ndarray, "M G"]]:
    names, rows = [], []
    for shape in SHAPES:
        for radii in ((6.0, 7.0, 8.0), (11.0, 12.2, 13.5)):
            covers = [shape_mask(shape, (32 + dx, 32 + dx / 2), r, SIDE) for r in radii for dx in (0.0, 0.3, 0.6)]
            names.append(shape)
            rows.append(np.mean([_normalised(cover, _box(cover)) for cover in covers], axis=0))
    return tuple(names), np.stack(rows)


def _shape_of(grid: Float[np.ndarray, "G"]) -> tuple[str | None, float]:
    names, templates = _templates()
    overlap = np.minimum(templates, grid).sum(axis=1) / np.maximum(templates, grid).sum(axis=1)
    best = int(overlap.argmax())
    return (names[best] if overlap[best] >= SHAPE_REACH else None), float(overlap[best])


def _colour_of(rgb: Float[np.ndarray, "3"]) -> str | None:
    distances = {name: float(np.linalg.norm(rgb - np.array(tone))) for name, tone in PALETTE.items()}
    nearest = min(distances, key=lambda name: distances[name])
    return nearest if distances[nearest] <= COLOUR_REACH else None


def _split_by_colour(
    region: Bool[np.ndarray, "H W"], nearest: Int[np.ndarray, "H W"], sure: Bool[np.ndarray, "H W"]
) -> list[Bool[np.ndarray, "H W"]]:
    """Separate touching things of different palette colours; leave a region of one colour as it is."""
    counts = np.bincount(nearest[region & sure], minlength=len(PALETTE))
    present = np.flatnonzero(counts >= max(LEAST_AREA, 0.2 * counts.max()))
    if len(present) < 2:
        return [region]
    return [region & (nearest == colour) for colour in present]


def read(image: UInt8[np.ndarray, "64 64 3"]) -> list[Seen]:
    """Find the things in an image (an array or a PIL image), largest first, at most MOST_THINGS.

    Raises RewardError for anything but 64 x 64 RGB bytes.
    """
    pixels = np.asarray(image)
    if pixels.shape != (SIDE, SIDE, 3) or pixels.dtype != np.uint8:
        raise RewardError(f"got an image of shape {pixels.shape} and type {pixels.dtype}, expected 64 x 64 x 3 bytes")
    rgb = pixels.astype(np.float32)
    border = np.concatenate(
        [rgb[:2].reshape(-1, 3), rgb[-2:].reshape(-1, 3), rgb[:, :2].reshape(-1, 3), rgb[:, -2:].reshape(-1, 3)]
    )
    background = np.median(border, axis=0)
    if np.abs(border - background).mean() > QUIET_BORDER:
        return []
    offset = rgb - background
    labels = connected(np.linalg.norm(offset, axis=2) > CONTRAST)
    areas = np.bincount(labels.ravel())[1:]
    inside = labels > 0
    to_palette = np.linalg.norm(rgb[inside][:, None] - np.array(list(PALETTE.values()), dtype=np.float32), axis=2)
    nearest, sure = np.zeros_like(labels), np.zeros_like(inside)
    nearest[inside], sure[inside] = to_palette.argmin(axis=1), to_palette.min(axis=1) < COLOUR_REACH * 0.75
    seen = []
    for number in np.argsort(-areas, kind="stable")[:MOST_THINGS] + 1:
        for region in _split_by_colour(labels == number, nearest, sure):
            seen += _describe(region, rgb, offset)
    return sorted(seen, key=lambda thing: -thing.extent)[:MOST_THINGS]


def _describe(
    region: Bool[np.ndarray, "H W"], rgb: Float[np.ndarray, "H W 3"], offset: Float[np.ndarray, "H W 3"]
) -> list[Seen]:
    """Describe a region: one thing, or none if it is too small to count."""
    if region.sum() < LEAST_AREA:
        return []
    strength = np.linalg.norm(offset, axis=2)
    core = region & (strength >= np.median(strength[region]))
    tone = np.median(offset[core], axis=0)
    cover = np.clip(offset @ tone / (tone @ tone), 0, 1) * region
    if cover.sum() < LEAST_AREA:
        return []
    left, top, right, bottom = box = _box(cover)
    shape, match = _shape_of(_normalised(cover, box))
    extent = max(right - left, bottom - top)
    colour = _colour_of(np.median(rgb[core], axis=0))
    return [Seen(shape=shape, colour=colour, x=(left + right) / 2, y=(top + bottom) / 2, extent=extent, match=match)]


def judge(image: UInt8[np.ndarray, "64 64 3"], caption: str) -> Verdict:
    """Judge which of the caption's facts hold in the image.

    Things in the image are matched to things of the caption so that as many facts as possible hold. A missing thing
    makes its facts false, and one too many makes the count false. Raises PromptError for a caption outside the grammar,
    and RewardError for an image of another size.
    """
    wanted, seen = parse(caption), read(image)
    places: list[Seen | None] = [*seen, *[None] * len(wanted.things)]
    verdicts = [_facts(wanted, chosen, len(seen)) for chosen in permutations(places, len(wanted.things))]
    return Verdict(facts=max(verdicts, key=lambda facts: sum(facts.values())))


def _facts(wanted: Caption, chosen: tuple[Seen | None, ...], count: int) -> dict[str, bool]:
    facts = {"count": count == len(wanted.things)}
    for number, (thing, seen) in enumerate(zip(wanted.things, chosen, strict=True), start=1):
        facts |= {f"{fact} {number}": held for fact, held in _thing_facts(thing, seen).items()}
    if wanted.relation not in (None, "and"):
        facts["relation"] = all(
            a is not None and b is not None and _related(a, b, wanted.relation) for a, b in pairwise(chosen)
        )
    if wanted.position is not None:
        facts["position"] = chosen[0] is not None and _placed(chosen[0], wanted.position)
    return facts


def _thing_facts(thing: Thing, seen: Seen | None) -> dict[str, bool]:
    facts = {
        "object": seen is not None and seen.shape == thing.shape,
        "colour": seen is not None and seen.colour == thing.colour,
    }
    if thing.size is not None:
        facts["size"] = seen is not None and seen.size == thing.size
    return facts


def _related(first: Seen, second: Seen, relation: str | None) -> bool:
    """Tell whether a relation holds, along the axis on which the two things are further apart."""
    dx, dy = second.x - first.x, second.y - first.y
    if relation in ("above", "below"):
        return abs(dy) > abs(dx) and (dy > 0) == (relation == "above")
    return abs(dx) > abs(dy) and (dx > 0) == (relation == "to the left of")


def _placed(seen: Seen, position: str) -> bool:
    """Tell whether a position holds: the outer two fifths are top, bottom, left and right; the center is the middle."""
    low, high, middle = 0.42 * SIDE, 0.58 * SIDE, SIDE / 2
    return {
        "at the top": seen.y < low,
        "at the bottom": seen.y > high,
        "at the left": seen.x < low,
        "at the right": seen.x > high,
        "in the center": max(abs(seen.x - middle), abs(seen.y - middle)) < 9,
    }[position]
