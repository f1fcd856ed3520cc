"""The images of a report: pairs of before and after, the worst losers, and each shown prompt over the run."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pcpo_ray.config import TOTAL
from pcpo_ray.runs.records import Record

PAIRS, LOSERS = 12, 3
"""Pairs shown that are evenly spaced over all images, and pairs that lost most."""

COLUMNS = 8
"""The evaluations, evenly spaced over the run, at which a prompt's image is shown."""

SIDE, SMALL_SIDE = 384, 160
"""Largest width and height, in pixels, of an image in a pair and of one over the run."""

SHARP = 128
"""Width up to which an image is stored as it is, and shown with its own pixels."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One image on the page: the step it is from, its score, its data URL, and whether to show its own pixels."""

    step: int
    score: float
    data: str
    sharp: bool


@dataclass(frozen=True, kw_only=True)
class Pair:
    """An image before and after training; `after` is None while only the first evaluation's images are kept.

    `lost` marks it as one of those whose score fell most.
    """

    prompt: str
    lost: bool = False
    before: Shown
    after: Shown | None = None

    @property
    def change(self) -> float:
        """By how much the score changed; NaN if a score is missing."""
        return float("nan") if self.after is None else self.after.score - self.before.score


def examples(record: Record) -> dict[str, Any] | None:
    """Return the images to show; None if none are kept.

    `pairs` are evenly spaced over all images, `losers` are those whose score fell most and that are not among `pairs`,
    where they are marked. `fallen` counts the images whose score fell, `most` those that fell most.
    """
    kept = [step for step in record.scores if image_path(record, step, 0, 0).is_file()]
    if not kept:
        return None
    first = min(kept)
    before = record.scores[first][TOTAL]
    whole = [step for step in kept if _is_whole(record, step, before.shape)]
    last = max(whole, default=first)
    texts = prompts(record, first)
    places = _evenly(before.size, PAIRS)
    worst, fallen = [], 0
    if last > first:
        change = (record.scores[last][TOTAL] - before).ravel()
        order = np.argsort(np.where(np.isfinite(change), change, np.inf), kind="stable")
        worst = [int(place) for place in order[:LOSERS] if change[place] < 0]
        fallen = int((change < 0).sum())
    return {
        "first": first,
        "last": last,
        "of": before.size,
        "pairs": [_pair(record, texts, first, last, place, lost=place in worst) for place in places],
        "losers": [_pair(record, texts, first, last, place, lost=True) for place in worst if place not in places],
        "most": len(worst),
        "fallen": fallen,
    }


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
    rows = [
        {"prompt": texts[place], "shown": [_shown(record, step, place, 0, SMALL_SIDE) for step in steps]}
        for place in chosen
    ]
    return {"steps": steps, "rows": rows}


def _evenly(of: int, count: int) -> list[int]:
    """Return up to `count` numbers below `of`, evenly spaced."""
    count = min(count, of)
    return [n * of // count for n in range(count)]


def _is_whole(record: Record, step: int, shape: Sequence[int]) -> bool:
    """Return whether an evaluation kept all its images: those on the way keep some."""
    return all(image_path(record, step, n, sample).is_file() for n in range(shape[0]) for sample in range(shape[1]))


def _pair(record: Record, texts: Sequence[str], first: int, last: int, place: int, *, lost: bool) -> Pair:
    position, sample = divmod(place, record.scores[first][TOTAL].shape[1])
    return Pair(
        prompt=texts[position],
        lost=lost,
        before=_shown(record, first, position, sample, SIDE),
        after=_shown(record, last, position, sample, SIDE) if last > first else None,
    )


def _shown(record: Record, step: int, position: int, sample: int, side: int) -> Shown:
    data, width = thumbnail(image_path(record, step, position, sample), side)
    score = float(record.scores[step][TOTAL][position, sample])
    return Shown(step=step, score=score, data=data, sharp=width <= SHARP)


def prompts(record: Record, step: int) -> list[str]:
    """Read the texts of an evaluation's P prompts."""
    from pyarrow import parquet

    path = record.folder / "evaluations.parquet" / f"step-{step:06d}.parquet"
    table = parquet.read_table(path, columns=["prompt", "sample"])
    return [row["prompt"] for row in table.to_pylist() if row["sample"] == 0]


def image_path(record: Record, step: int, position: int, sample: int) -> Path:
    """Return the path of one evaluation image."""
    return record.folder / "images" / f"step-{step:06d}" / f"{position:03d}-{sample:02d}.png"


def thumbnail(path: Path, side: int = SIDE) -> tuple[str, int]:
    """Return an image as a data URL, reduced to so many pixels a side, and its width.

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
        return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}", image.width
