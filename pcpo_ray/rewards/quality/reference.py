"""Reference sets: features of the images that an evaluation's are compared with, cached on disk if configured.

A cache entry's key covers the bytes of every image, and the network with its files' names, sizes and times. So a
changed image or network makes another entry, and no entry is ever stale.
"""

import hashlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, assert_never

import numpy as np
from jaxtyping import Float, UInt8

from pcpo_ray import config
from pcpo_ray.errors import QualityError, RunError
from pcpo_ray.rewards import published
from pcpo_ray.rewards.quality import features, frechet
from pcpo_ray.runs.disk import replacing, retrying, writing

UNREAD = (".heic", ".heif", ".jxl", ".exr", ".hdr", ".svg", ".cr2", ".nef", ".arw", ".dng")
"""Suffixes of images that cannot be read here; skipping them would change the set."""

MODES = ("1", "L", "P", "RGB", "LA", "PA", "RGBA", "I;16", "I;16B", "I;16L", "I;16N")
"""PIL's modes with known black and white; `I`, `F` and CMYK have none."""

ORIENTATION, QUARTER_TURNS, OPAQUE = 0x0112, 5, 255
"""EXIF's orientation tag, its first value for a quarter turn, and the largest alpha."""


@dataclass(frozen=True)
class Reference:
    """The features of M images, and their height and width."""

    features: Float[np.ndarray, "M E"]
    size: tuple[int, int]

    @cached_property
    def normal(self) -> frechet.Normal:
        return frechet.normal(self.features)


def check(quality: config.Quality, size: tuple[int, int] | None = None) -> None:
    """Check, from the headers of its files, that the reference suits images of `size` (None: unknown).

    Raises QualityError for images that are missing, too few, or of other sizes.
    """
    if isinstance(quality.reference, config.ImagesReference):
        paths = image_files(quality.reference.path)
        if len(paths) <= quality.neighbours:
            raise QualityError(
                f"evaluation.quality.reference.path {quality.reference.path} has {len(paths)} images; expected more "
                f"than the {quality.neighbours} of evaluation.quality.neighbours"
            )
        _one_size(paths, size)


def image_files(path: str) -> list[Path]:
    """List the images of a folder, by name, or of a .txt list, in its order. Raises QualityError if there are none."""
    where = Path(path).expanduser()
    if where.is_dir():
        found = sorted(_images_below(where))
    elif where.suffix.lower() == ".txt" and where.is_file():
        found = _listed(where)
    else:
        raise QualityError(
            f"evaluation.quality.reference.path is {path}; expected a folder, or a .txt file with a path a line"
        )
    if not found:
        raise QualityError(
            f"evaluation.quality.reference.path {path} has no images (.png, .jpg, .webp and others that PIL reads)"
        )
    return found


def _images_below(folder: Path) -> Iterator[Path]:
    """Find every image in a folder, except hidden files such as thumbnails and editors' backups."""
    from PIL import Image

    formats = Image.registered_extensions()
    for file in folder.rglob("*"):
        ending = file.suffix.lower()
        if file.is_dir() or any(part.startswith(".") for part in file.relative_to(folder).parts):
            continue
        if ending in UNREAD:
            raise QualityError(f"{file} is an image that cannot be read here; save it as PNG, or remove it")
        if formats.get(ending) in Image.OPEN:
            yield file


def _listed(where: Path) -> list[Path]:
    """Read a list of files, one path per line, relative to the list's own folder."""
    try:
        text = where.read_bytes().decode("utf-8-sig")  # read_text would end lines at a lone \r
    except UnicodeDecodeError as error:
        raise QualityError(f"{where} is not UTF-8 ({error}); save it as UTF-8") from None
    lines = (line.removesuffix("\r") for line in text.split("\n"))
    found = [where.parent / Path(line).expanduser() for line in lines if line.strip()]
    absent = [file for file in found if not file.is_file()]
    if absent:
        raise QualityError(f"{where} names {len(absent)} images that do not exist, such as {absent[0]}")
    return found


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open an image and read its header. Raises QualityError if it is no image or its mode is ambiguous."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path)
    except Exception as error:  # each format's reader may raise anything
        why = published.fault(path) or f"{path} cannot be read as an image: {error}; copy it again, or remove it"
        raise QualityError(why) from None
    with image:
        png = image.format == "PNG" and image.mode == "I"  # 16 bits, as older PIL calls it
        if image.mode not in MODES and not png:
            raise QualityError(
                f"{path} is an image of mode {image.mode}, which does not define black and white, "
                "or how its inks look; save it in RGB with 8 bits a channel (sRGB)"
            )
        if getattr(image, "is_animated", False) and image.format != "MPO":  # MPO's other frames are previews
            raise QualityError(f"{path} has several frames; save the one that counts by itself")
        yield image


def _size(path: Path) -> tuple[int, int]:
    """Return the height and width of the image as displayed, after any EXIF rotation."""
    from PIL import Image

    with _opened(path) as image:
        try:
            note = Image.Exif()
            if image.format == "PNG":  # getexif would read the whole PNG
                note.load(image.info.get("exif"))
            else:
                note = image.getexif()
            turned = note.get(ORIENTATION, 1) >= QUARTER_TURNS
        except Exception as error:  # malformed EXIF may raise anything
            raise QualityError(f"{path} has EXIF that cannot be read: {error}; save it without") from None
        return (image.width, image.height) if turned else (image.height, image.width)


def pixels(path: Path) -> UInt8[np.ndarray, "H W 3"]:
    """Read the image as displayed. Raises QualityError if it is truncated or transparent."""
    from PIL import ImageFile, ImageOps

    with _opened(path) as image:
        lenient, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
        try:
            shown = ImageOps.exif_transpose(image)
        except Exception as error:  # each format's reader may raise anything
            raise QualityError(
                f"{path} cannot be read as a whole image: {error}; copy it again, or remove it"
            ) from None
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = lenient
        if shown.mode.startswith("I"):
            grey = np.rint(np.asarray(shown).astype(np.float64) / 257).astype(np.uint8)  # 65535 is white
            return np.repeat(grey[..., None], 3, axis=2)
        if shown.has_transparency_data:
            colours = np.asarray(shown.convert("RGBA"))
            if colours[..., 3].min() < OPAQUE:
                raise QualityError(
                    f"{path} is transparent in places, and nothing says what is behind; save it on a background, "
                    "without alpha"
                )
            return colours[..., :3].copy()
        return np.asarray(shown.convert("RGB"))


def _one_size(paths: list[Path], wanted: tuple[int, int] | None) -> tuple[int, int]:
    """Return the height and width that all images share, from their files' headers."""
    found: dict[tuple[int, int], list[Path]] = {}
    for path in paths:
        found.setdefault(_size(path), []).append(path)
    expected = wanted or max(found, key=lambda size: len(found[size]))
    others = {size: some for size, some in found.items() if size != expected}
    if others:
        size, some = max(others.items(), key=lambda item: len(item[1]))
        whose = "the run's own are" if wanted else "most are"
        raise QualityError(
            f"{sum(map(len, others.values()))} of {len(paths)} reference images have another size, such as "
            f"{some[0]} ({size[0]} x {size[1]}); {whose} {expected[0]} x {expected[1]}, and features of resized "
            "resizing alone makes images differ; make all of them that size"
        )
    return expected


def load(quality: config.Quality, extractor: Callable[[], features.Extractor], say: Callable[[str], None]) -> Reference:
    """Load the reference of drawn or given images; `extractor` is called only if features are not cached yet.

    Raises QualityError.
    """
    match quality.reference:
        case config.ShapesReference(count=count, form=form):
            from pcpo_ray.shapes.draw import SIDE

            size = (SIDE, SIDE)
            drawn = config.ShapesPrompts(split="held_out", form=form)
            chunks: Callable[[], Iterator[np.ndarray]] = lambda: _drawn(count, drawn)  # noqa: E731
            what = hashlib.blake2b(f"shapes {count} {form}".encode())
            for chunk in chunks() if quality.cache else ():
                what.update(chunk.tobytes())
        case config.WordsReference(count=count):
            from pcpo_ray.words.draw import HEIGHT, WIDTH

            size = (HEIGHT, WIDTH)
            chunks = lambda: _drawn(count, config.WordsPrompts(split="held_out"))  # noqa: E731
            what = hashlib.blake2b(f"words {count}".encode())
            for chunk in chunks() if quality.cache else ():
                what.update(chunk.tobytes())
        case config.ImagesReference(path=path):
            paths = image_files(path)
            count, size = len(paths), _one_size(paths, None)
            chunks = lambda: _in_chunks(paths, size)  # noqa: E731
            what = hashlib.blake2b(b"images, as they are looked at")
            for file in paths if quality.cache else ():
                what.update(hashlib.blake2b(file.read_bytes()).digest())
        case config.BaseReference() | None:
            raise AssertionError(quality.reference)  # made of the run's own images, not loaded
        case _:
            assert_never(quality.reference)
    kept = None
    if quality.cache:
        what.update(repr(quality.features).encode())
        for file in features.files(quality.features):
            stat = file.stat()
            what.update(f"{file.name} {stat.st_size} {stat.st_mtime_ns}".encode())
        kept = Path(quality.cache) / f"{what.hexdigest()[:32]}.npy"
        if kept.is_file():
            return Reference(_read(kept), size)
    say(f"reference: features of {count} images")
    extract = extractor()
    found = np.concatenate([extract(chunk) for chunk in chunks()])
    if not np.isfinite(found).all():
        raise QualityError(f"the features of {count} reference images are not all finite; check the network's weights")
    if kept is not None:
        try:
            save(kept, found)
        except RunError as error:
            say(
                f"reference: its features are not kept in evaluation.quality.cache={quality.cache!r}: {error.__cause__}"
            )
    return Reference(found, size)


def save(path: Path, values: Float[np.ndarray, "N E"]) -> None:
    """Write features atomically, even if others write the same file. Raises RunError if the disk is full."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as made, made.open("wb") as file:
        np.save(file, values)


def _read(path: Path) -> np.ndarray:
    try:
        for attempt in retrying():
            with attempt:
                found: np.ndarray = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise QualityError(f"{path} holds no features ({error}); delete it, and it is made again") from None
    return found


def base(path: Path, size: tuple[int, int]) -> Reference:
    """Load the features of the run's first evaluation. Raises QualityError if the run has none."""
    if not path.is_file():
        raise QualityError(
            f"{path} is missing: evaluation.quality.reference base is the run's own first evaluation; train the run "
            "from its start, or give another reference"
        )
    return Reference(_read(path), size)


def _drawn(count: int, asked: config.EmbeddedPrompts) -> Iterator[UInt8[np.ndarray, "N H W 3"]]:
    from pcpo_ray.data import prompts, worlds

    captions = prompts.load(asked, seed=0).batch(1, count)
    for start in range(0, count, features.CHUNK):
        some = captions[start : start + features.CHUNK]
        yield np.stack([worlds.draw(asked.kind, one.text, start + n) for n, one in enumerate(some)])


def _in_chunks(paths: list[Path], size: tuple[int, int]) -> Iterator[UInt8[np.ndarray, "N H W 3"]]:
    for start in range(0, len(paths), features.CHUNK):
        some = paths[start : start + features.CHUNK]
        found = [pixels(path) for path in some]
        for path, image in zip(some, found, strict=True):
            if image.shape[:2] != size:
                raise QualityError(f"{path} is turned by EXIF at its end, where its head says nothing; save it upright")
        yield np.stack(found)
