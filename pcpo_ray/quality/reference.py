"""Reference sets: the pictures that an evaluation's are compared with, as features, kept on disk where one asks for it.

What is kept goes by what it was made of: the bytes of every picture, and the network with its files' names, sizes and
times. So a changed picture or network is another entry, and no entry is ever wrong.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from pcpo_ray import config
from pcpo_ray.disk import writing
from pcpo_ray.errors import QualityError
from pcpo_ray.quality import features, frechet

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class Reference:
    """The features of M pictures, and the pictures' height and width."""

    features: Float[np.ndarray, "M E"]
    size: tuple[int, int]

    @cached_property
    def normal(self) -> frechet.Normal:
        return frechet.normal(self.features)


def check(quality: config.Quality, size: tuple[int, int] | None = None) -> None:
    """See, without loading a picture whole, that the reference can be used for pictures of `size` (None: unknown).

    Raises QualityError for pictures that are not there, too few, or of other sizes.
    """
    if isinstance(quality.reference, config.ImagesReference):
        paths = pictures(quality.reference.path)
        if len(paths) <= quality.neighbours:
            raise QualityError(
                f"evaluation.quality.reference.path {quality.reference.path} has {len(paths)} pictures; expected more "
                f"than the {quality.neighbours} of evaluation.quality.neighbours"
            )
        _one_size(paths, size)


def pictures(path: str) -> list[Path]:
    """The files of a folder, by name, or of a .txt list, in its order. Raises QualityError where there are none."""
    where = Path(path)
    if where.is_dir():
        found = sorted(file for file in where.rglob("*") if file.suffix.lower() in ENDINGS)
    elif where.suffix == ".txt" and where.is_file():
        found = [where.parent / line.strip() for line in where.read_text(encoding="utf-8").splitlines() if line.strip()]
        absent = [file for file in found if not file.is_file()]
        if absent:
            raise QualityError(f"{where} names {len(absent)} pictures that are not there, such as {absent[0]}")
    else:
        raise QualityError(
            f"evaluation.quality.reference.path is {path}; expected a folder, or a .txt file with a path a line"
        )
    if not found:
        raise QualityError(f"evaluation.quality.reference.path {path} has no pictures ({', '.join(ENDINGS)})")
    return found


def _one_size(paths: list[Path], wanted: tuple[int, int] | None) -> tuple[int, int]:
    """The pictures' one height and width, from their files' heads."""
    from PIL import Image

    found: dict[tuple[int, int], list[Path]] = {}
    for path in paths:
        try:
            with Image.open(path) as picture:
                found.setdefault((picture.height, picture.width), []).append(path)
        except OSError as error:
            raise QualityError(f"{path} cannot be read as a picture: {error}") from None
    expected = wanted or max(found, key=lambda size: len(found[size]))
    others = {size: some for size, some in found.items() if size != expected}
    if others:
        size, some = max(others.items(), key=lambda item: len(item[1]))
        whose = "the run's own are" if wanted else "most are"
        raise QualityError(
            f"{sum(map(len, others.values()))} of {len(paths)} reference pictures are of another size, such as "
            f"{some[0]} ({size[0]} x {size[1]}); {whose} {expected[0]} x {expected[1]}, and features of resized "
            "pictures differ for the resizing alone; make all of them that size"
        )
    return expected


def load(quality: config.Quality, extractor: Callable[[], features.Extractor], say: Callable[[str], None]) -> Reference:
    """The reference of drawn or given pictures; `extractor` is asked for only where features are not kept yet.

    Raises QualityError.
    """
    match quality.reference:
        case config.ShapesReference(count=count, form=form):
            from pcpo_ray.shapes.draw import SIDE

            size = (SIDE, SIDE)
            chunks: Callable[[], Iterator[np.ndarray]] = lambda: _drawn(count, form)  # noqa: E731
            what = hashlib.blake2b(f"shapes {count} {form}".encode())
            for chunk in chunks() if quality.cache else ():
                what.update(chunk.tobytes())
        case config.ImagesReference(path=path):
            paths = pictures(path)
            count, size = len(paths), _one_size(paths, None)
            chunks = lambda: _opened(paths)  # noqa: E731
            what = hashlib.blake2b(b"images")
            for file in paths if quality.cache else ():
                what.update(hashlib.blake2b(file.read_bytes()).digest())
        case _:
            raise AssertionError(quality.reference)
    kept = None
    if quality.cache:
        what.update(repr(quality.features).encode())
        for file in features.files(quality.features):
            stat = file.stat()
            what.update(f"{file.name} {stat.st_size} {stat.st_mtime_ns}".encode())
        kept = Path(quality.cache) / f"{what.hexdigest()[:32]}.npy"
        if kept.is_file():
            return Reference(_read(kept), size)
    say(f"reference: features of {count} pictures")
    extract = extractor()
    found = np.concatenate([extract(chunk) for chunk in chunks()])
    if kept is not None:
        save(kept, found)
    return Reference(found, size)


def save(path: Path, values: Float[np.ndarray, "N E"]) -> None:
    """Write features, whole or not at all. Raises RunError where the disk does not take them."""
    beside = path.with_name(f".{path.stem}.unfinished.npy")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(beside, values)
        beside.rename(path)


def _read(path: Path) -> np.ndarray:
    try:
        found: np.ndarray = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise QualityError(f"{path} holds no features ({error}); delete it, and it is made again") from None
    return found


def base(path: Path, size: tuple[int, int]) -> Reference:
    """The features of the run's first evaluation. Raises QualityError where the run has none."""
    if not path.is_file():
        raise QualityError(
            f"{path} is missing: evaluation.quality.reference base is the run's own first evaluation; train the run "
            "from its start, or give another reference"
        )
    return Reference(_read(path), size)


def _drawn(count: int, form: config.CaptionForm) -> Iterator[UInt8[np.ndarray, "N H W 3"]]:
    from pcpo_ray import prompts
    from pcpo_ray.shapes.captions import parse
    from pcpo_ray.shapes.draw import draw

    captions = prompts.load(config.ShapesPrompts(split="held_out", form=form), seed=0).batch(1, count)
    for start in range(0, count, features.CHUNK):
        some = captions[start : start + features.CHUNK]
        yield np.stack([draw(parse(one.text), start + n) for n, one in enumerate(some)])


def _opened(paths: list[Path]) -> Iterator[UInt8[np.ndarray, "N H W 3"]]:
    from PIL import Image

    for start in range(0, len(paths), features.CHUNK):
        yield np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths[start : start + features.CHUNK]])
