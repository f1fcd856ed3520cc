"""The images of a report: pairs of before and after, those that changed most, and each shown prompt over the run."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from pcpo_ray.config import TOTAL
from pcpo_ray.runs.records import Record

PAIRS, MOST = 12, 3
"""Pairs shown that are evenly spaced over all images, and of those that gained most and lost most."""

COLUMNS = 8
"""The evaluations, evenly spaced over the run, at which a prompt's image is shown."""

SIDE, SMALL_SIDE = 384, 160
"""Largest width and height, in pixels, of an image in a pair and of one over the run."""

SHARP = 128
"""Width up to which an image is stored as it is, and shown with its own pixels."""

WIDE = 2
"""The width of an image over its height from which a pair stands one above the other, so that both are large."""

Way = Literal["gained", "lost"]

Said = Mapping[tuple[int, int], Mapping[str, str]]
"""The texts of rewards on an evaluation's images: by the prompt's place and the sample, then by reward."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One image on the page: the step it is from, its score, its data URL, and whether to show its own pixels.

    `described` is what rewards saw in it, by their names.
    """

    step: int
    score: float
    data: str
    sharp: bool
    wide: bool
    described: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """An image before and after training; `after` is None while only the first evaluation's images are kept.

    `way` marks it as one of those that gained or lost most.
    """

    prompt: str
    way: Way | None = None
    before: Shown
    after: Shown | None = None

    @property
    def change(self) -> float:
        """By how much the score changed; NaN if a score is missing."""
        return float("nan") if self.after is None else self.after.score - self.before.score


@dataclass(frozen=True, kw_only=True)
class Most:
    """The images that gained, or lost, most: how many, of how many that did, and the pairs not shown before."""

    way: Way
    count: int
    of: int
    pairs: Sequence[Pair]


def examples(record: Record) -> dict[str, Any] | None:
    """Return the images to show; None if none are kept.

    `pairs` are evenly spaced over all images; `extremes` are those that gained most and those that lost most.
    """
    kept = [step for step in record.scores if image_path(record, step, 0, 0).is_file()]
    if not kept:
        return None
    first = min(kept)
    before = record.scores[first][TOTAL]
    whole = [step for step in kept if _is_whole(record, step, before.shape)]
    last = max(whole, default=first)
    texts = prompts(record, first)
    said = {step: descriptions(record, step) for step in (first, last)}
    places = _evenly(before.size, PAIRS)
    change = (record.scores[last][TOTAL] - before).ravel()
    most: dict[Way, list[int]] = {"gained": _most(change), "lost": _most(-change)}
    ways: dict[int, Way] = {place: way for way, found in most.items() for place in found}

    def pair(place: int) -> Pair:
        return _pair(record, texts, said, place, ways.get(place))

    pairs = [pair(place) for place in places]
    return {
        "first": first,
        "last": last,
        "of": before.size,
        "pairs": pairs,
        "extremes": [
            Most(
                way=way,
                count=len(found),
                of=int((change > 0 if way == "gained" else change < 0).sum()),
                pairs=[pair(place) for place in found if place not in places],
            )
            for way, found in most.items()
            if found
        ],
        "wide": pairs[0].before.wide,
        "described": any(said.values()),
    }


def _most(change: Float[np.ndarray, " images"]) -> list[int]:
    """Return the places where a score rose most, the largest first; none where none rose."""
    order = np.argsort(np.where(np.isfinite(change), -change, np.inf), kind="stable")
    return [int(place) for place in order[:MOST] if change[place] > 0]


def over_the_run(record: Record) -> dict[str, Any] | None:
    """Return the image of each shown prompt at several evaluations; None where fewer than two kept images."""
    kept = [step for step in sorted(record.scores) if image_path(record, step, 0, 0).is_file()]
    if len(kept) < 2:
        return None
    spaced = np.unique(np.linspace(0, len(kept) - 1, min(COLUMNS, len(kept))).round().astype(int))
    steps = [kept[place] for place in spaced]
    count = len(record.scores[kept[0]][TOTAL])
    places = [n for n in range(count) if all(image_path(record, step, n, 0).is_file() for step in steps)]
    texts = prompts(record, kept[0])
    chosen = [places[n] for n in _evenly(len(places), COLUMNS)]  # as many as every evaluation keeps
    said = {step: descriptions(record, step) for step in steps}
    shown = [[_shown(record, said, step, place, 0, SMALL_SIDE) for step in steps] for place in chosen]
    rows = [{"prompt": texts[place], "shown": row} for place, row in zip(chosen, shown, strict=True)]
    return {"steps": steps, "rows": rows, "wide": shown[0][0].wide}


def _evenly(of: int, count: int) -> list[int]:
    """Return up to `count` numbers below `of`, evenly spaced."""
    count = min(count, of)
    return [n * of // count for n in range(count)]


def _is_whole(record: Record, step: int, shape: Sequence[int]) -> bool:
    """Return whether an evaluation kept all its images: those on the way keep some."""
    return all(image_path(record, step, n, sample).is_file() for n in range(shape[0]) for sample in range(shape[1]))


def _pair(record: Record, texts: Sequence[str], said: Mapping[int, Said], place: int, way: Way | None) -> Pair:
    """Make the pair at a place; `said` has the first step that is shown and, if there is another, the last."""
    first, last = min(said), max(said)
    position, sample = divmod(place, record.scores[first][TOTAL].shape[1])
    return Pair(
        prompt=texts[position],
        way=way,
        before=_shown(record, said, first, position, sample, SIDE),
        after=_shown(record, said, last, position, sample, SIDE) if last > first else None,
    )


def _shown(record: Record, said: Mapping[int, Said], step: int, position: int, sample: int, side: int) -> Shown:
    data, (width, height) = thumbnail(image_path(record, step, position, sample), side)
    score = float(record.scores[step][TOTAL][position, sample])
    described = said[step].get((position, sample), {})
    return Shown(
        step=step, score=score, data=data, sharp=width <= SHARP, wide=width >= WIDE * height, described=described
    )


def prompts(record: Record, step: int) -> list[str]:
    """Read the texts of an evaluation's P prompts."""
    from pyarrow import parquet

    path = record.folder / "evaluations.parquet" / f"step-{step:06d}.parquet"
    table = parquet.read_table(path, columns=["prompt", "sample"])
    return [row["prompt"] for row in table.to_pylist() if row["sample"] == 0]


def descriptions(record: Record, step: int) -> Said:
    """Read what rewards saw in an evaluation's images, by position and sample; nothing where none says so."""
    from pyarrow import parquet

    path = record.folder / "evaluations.parquet" / f"step-{step:06d}.parquet"
    if "described" not in parquet.read_schema(path).names:
        return {}
    table = parquet.read_table(path, columns=["position", "sample", "described"])
    return {(row["position"], row["sample"]): row["described"] for row in table.to_pylist()}


def image_path(record: Record, step: int, position: int, sample: int) -> Path:
    """Return the path of one evaluation image."""
    return record.folder / "images" / f"step-{step:06d}" / f"{position:03d}-{sample:02d}.png"


def thumbnail(path: Path, side: int = SIDE) -> tuple[str, tuple[int, int]]:
    """Return an image as a data URL, reduced to so many pixels a side, and its width and height.

    Small images are PNG, to the pixel. Others are WebP, a tenth of the size, so that the page stays one modest file.
    """
    from PIL import Image

    with Image.open(path) as image:
        image.thumbnail((side, side))
        file = io.BytesIO()
        kind = "png" if image.width <= SHARP else "webp"
        if kind == "png":
            image.save(file, format="PNG", optimize=True)
        else:
            image.convert("RGB").save(file, format="WEBP", quality=85, method=4)
        return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}", image.size
