"""Reference sets: which pictures, kept by what they are made of, of the run's size or none."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageFile

from pcpo_ray import config
from pcpo_ray.errors import QualityError
from pcpo_ray.rewards.quality import features, reference


def quality(where, **more):
    return config.Quality(
        features=config.ClipFeatures(), reference=config.ImagesReference(path=str(where)), neighbours=2, **more
    )


def pictures(folder, count=4, size=(8, 8), seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    for n, pixels in enumerate(np.random.default_rng(seed).integers(0, 256, (count, *size, 3), np.uint8)):
        Image.fromarray(pixels).save(folder / f"{seed}-{n}.png")
    return folder


def means(images):
    return images.mean(axis=(1, 2)).astype(np.float32)


class Counted:
    """An extractor that says how often it was asked for."""

    def __init__(self):
        self.asked = 0

    def __call__(self):
        self.asked += 1
        return means


def test_a_folder_and_a_list_of_its_files_are_the_same_reference(tmp_path):
    folder = pictures(tmp_path / "set")
    names = sorted(path.name for path in folder.iterdir())
    (tmp_path / "list.txt").write_text("".join(f"set/{name}\n" for name in names) + "\n")
    one, other = (reference.load(quality(tmp_path / name), Counted(), print) for name in ("set", "list.txt"))
    expected = means(np.stack([np.asarray(Image.open(folder / name)) for name in names]))
    assert (one.features == expected).all() and (other.features == expected).all()
    assert one.size == other.size == (8, 8)


def test_features_are_computed_once_for_the_same_images_and_network(tmp_path):
    folder = pictures(tmp_path / "set")
    extractor = Counted()

    def had(**more):
        return reference.load(quality(folder, cache=str(tmp_path / "kept"), **more), extractor, print).features

    first = had()
    assert (had() == first).all() and extractor.asked == 1
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "0-0.png")
    changed = had()
    assert extractor.asked == 2 and not (changed == first).all()
    assert len(list((tmp_path / "kept").iterdir())) == 2


def test_what_is_kept_is_of_one_network_only(tmp_path, monkeypatch):
    folder, extractor = pictures(tmp_path / "set"), Counted()
    weights = tmp_path / "weights"
    weights.write_text("old")
    monkeypatch.setattr(features, "files", lambda kind: [weights])
    reference.load(quality(folder, cache=str(tmp_path / "kept")), extractor, print)
    weights.write_text("newer")
    reference.load(quality(folder, cache=str(tmp_path / "kept")), extractor, print)
    assert extractor.asked == 2


def test_an_entry_that_is_cut_short_is_named(tmp_path):
    settings = quality(pictures(tmp_path / "set"), cache=str(tmp_path / "kept"))
    reference.load(settings, Counted(), print)
    (entry,) = (tmp_path / "kept").iterdir()
    entry.write_bytes(entry.read_bytes()[:20])
    with pytest.raises(QualityError, match=entry.name):
        reference.load(settings, Counted(), print)


@pytest.mark.parametrize(
    ("drawn", "size"), [(config.ShapesReference(count=70), (64, 64)), (config.WordsReference(count=70), (24, 64))]
)
def test_drawn_images_are_those_of_held_out_captions(drawn, size):
    settings = config.Quality(features=config.ClipFeatures(), reference=drawn)
    found = reference.load(settings, Counted(), print)
    assert found.features.shape == (70, 3) and found.size == size
    assert len(np.unique(found.features, axis=0)) > 60
    assert (reference.load(settings, Counted(), print).features == found.features).all()


def test_images_of_other_sizes_are_named_before_any_is_measured(tmp_path):
    folder = pictures(tmp_path / "set")
    pictures(folder, count=1, size=(8, 16), seed=1)
    with pytest.raises(QualityError, match=r"1 of 5 .*1-0\.png \(8 x 16\); most are 8 x 8"):
        reference.check(quality(folder))
    with pytest.raises(QualityError, match="the run's own are 16 x 16"):
        reference.check(quality(pictures(tmp_path / "other")), (16, 16))
    reference.check(quality(tmp_path / "other"), (8, 8))


def test_a_reference_that_is_not_there_too_small_or_no_image_is_named(tmp_path):
    (tmp_path / "list.txt").write_text("absent.png\n")
    (tmp_path / "empty").mkdir()
    few = pictures(tmp_path / "few", count=2)
    broken = pictures(tmp_path / "broken")
    (broken / "0-0.png").write_bytes(b"no picture")
    unfetched = pictures(tmp_path / "unfetched")
    (unfetched / "0-0.png").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    for where, words in [
        ("nowhere", "expected a folder"),
        ("list.txt", r"names 1 images that do not exist, such as .*absent\.png"),
        ("empty", "has no images"),
        (few, "has 2 images; expected more than the 2"),
        (broken, r"0-0\.png cannot be read"),
        (unfetched, r"0-0\.png is a git-lfs pointer"),
    ]:
        with pytest.raises(QualityError, match=words):
            reference.check(quality(tmp_path / where))


def test_the_base_models_images_are_the_runs_own_first_evaluation(tmp_path):
    reference.save(tmp_path / "features" / "step-000000.npy", np.ones((3, 2)))
    assert reference.base(tmp_path / "features" / "step-000000.npy", (8, 8)).features.shape == (3, 2)
    with pytest.raises(QualityError, match=r"step-000000\.npy is missing"):
        reference.base(tmp_path / "other" / "step-000000.npy", (8, 8))


RAMP = np.linspace(0, 65535, 64).reshape(8, 8)
GREY = np.repeat(np.rint(RAMP / 257).astype(np.uint8)[..., None], 3, axis=2)
COLOURS = np.stack([GREY[..., 0], GREY[..., 0].T, 255 - GREY[..., 0]], axis=2)
ALPHA = np.full((8, 8, 1), 255, np.uint8)


def saved(folder, name, array, mode=None, **more):
    path = folder / name
    picture = array if isinstance(array, Image.Image) else Image.fromarray(array)
    (picture if mode is None else picture.convert(mode)).save(path, **more)
    return path


@pytest.mark.parametrize(
    ("name", "image", "expected"),
    [
        ("deep.png", RAMP.astype(np.uint16), GREY),
        ("deep.tif", RAMP.astype(np.uint16), GREY),
        ("deep.tiff", RAMP.astype(">u2"), GREY),
        ("grey.png", GREY[..., 0], GREY),
        ("grey-alpha.png", np.concatenate([GREY[..., :1], ALPHA], axis=2), GREY),
        ("colours.BMP", COLOURS, COLOURS),
        ("colours-alpha.png", np.concatenate([COLOURS, ALPHA], axis=2), COLOURS),
        ("bits.png", Image.fromarray(GREY[..., 0] > 127), np.where(GREY > 127, 255, 0)),
        ("palette.png", Image.fromarray(GREY[..., 0]).convert("P"), GREY),
        ("palette.gif", Image.fromarray(GREY[..., 0]).convert("P"), GREY),
    ],
)
def test_images_of_every_mode_with_known_black_and_white_are_read_right(tmp_path, name, image, expected):
    path = saved(tmp_path, name, image)
    assert reference.image_files(str(tmp_path)) == [path]
    np.testing.assert_array_equal(reference.pixels(path), expected)


def test_sixteen_bits_of_colour_are_read_within_a_level(tmp_path):
    path = tmp_path / "deep.png"
    deep = np.rint(COLOURS.astype(np.float64) * 257 * 0.99).astype(">u2")
    path.write_bytes(sixteen_bit_png(deep))
    assert np.abs(reference.pixels(path).astype(int) - deep / 257).max() <= 1


def sixteen_bit_png(rows):
    """A PNG of 16-bit RGB, which PIL does not write."""
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = rows.shape
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("name", "image", "more", "words"),
    [
        ("float.tif", RAMP.astype(np.float32), {}, r"float\.tif is an image of mode F, .*save it in RGB"),
        ("int.tif", RAMP.astype(np.int32), {}, r"int\.tif is an image of mode I, "),
        ("ink.jpg", Image.fromarray(COLOURS).convert("CMYK"), {}, r"ink\.jpg is an image of mode CMYK"),
        ("lab.tif", Image.fromarray(COLOURS).convert("LAB"), {}, r"lab\.tif is an image of mode LAB"),
        (
            "moves.gif",
            Image.fromarray(COLOURS),
            {"save_all": True, "append_images": [Image.fromarray(255 - COLOURS)]},
            r"moves\.gif has several frames",
        ),
        (
            "moves.png",
            Image.fromarray(COLOURS),
            {"save_all": True, "append_images": [Image.fromarray(255 - COLOURS)]},
            r"moves\.png has several frames",
        ),
    ],
)
def test_ambiguous_images_are_refused_before_any_is_measured(tmp_path, name, image, more, words):
    pictures(tmp_path)
    saved(tmp_path, name, image, **more)
    with pytest.raises(QualityError, match=words):
        reference.check(quality(tmp_path))


def test_an_image_with_an_exif_orientation_is_read_upright(tmp_path):
    note = Image.Exif()
    note[reference.ORIENTATION] = 6
    upright = np.concatenate([COLOURS, 255 - COLOURS])  # 16 x 8
    saved(tmp_path, "turned.png", Image.fromarray(np.rot90(upright).copy()), exif=note)
    saved(tmp_path, "upright.png", upright)
    np.testing.assert_array_equal(reference.pixels(tmp_path / "turned.png"), upright)
    assert reference._one_size(reference.image_files(str(tmp_path)), None) == (16, 8)


@pytest.mark.parametrize("name", ["cut.png", "cut.jpg"])
def test_an_image_cut_short_is_named_though_a_library_asked_for_leniency(tmp_path, monkeypatch, name):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    pictures(tmp_path, size=(64, 64))
    path = saved(tmp_path, name, np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    path.write_bytes(path.read_bytes()[:-900])
    reference.check(quality(tmp_path))
    with pytest.raises(QualityError, match=rf"{name} cannot be read as a whole image: .*copy it again"):
        reference.load(quality(tmp_path), Counted(), print)


def test_a_transparent_image_is_refused_an_opaque_alpha_is_not(tmp_path):
    alpha = ALPHA.copy()
    alpha[3, 3] = 0
    path = saved(tmp_path, "hole.png", np.concatenate([COLOURS, alpha], axis=2))
    with pytest.raises(QualityError, match=r"hole\.png is transparent in places, .*save it on a background"):
        reference.pixels(path)


def test_capital_suffixes_count_hidden_files_do_not_unreadable_are_named(tmp_path):
    folder = pictures(tmp_path / "set", count=1)
    saved(folder, "LOUD.JPG", COLOURS)
    saved(folder, "wrong.png", COLOURS, format="JPEG")
    (folder / ".ipynb_checkpoints").mkdir()
    saved(folder / ".ipynb_checkpoints", "0-0-checkpoint.png", COLOURS)
    (folder / "._LOUD.JPG").write_bytes(b"resource fork")
    (folder / "notes.md").write_text("about")
    assert [path.name for path in reference.image_files(str(folder))] == ["0-0.png", "LOUD.JPG", "wrong.png"]
    (folder / "phone.HEIC").write_bytes(b"")
    with pytest.raises(QualityError, match=r"phone\.HEIC is an image that cannot be read here; save it as PNG"):
        reference.image_files(str(folder))


def test_a_lists_lines_end_where_lines_end(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    names = ["a b.png", "with\u2028inside.png", "form\x0cfeed.png", " led.png"]
    folder = pictures(tmp_path / "set", count=1)
    for name in names:
        saved(folder, name, COLOURS)
    pictures(tmp_path / "home", count=1)
    lines = [f"set/{name}" for name in names] + ["~/0-0.png", str(folder / "0-0.png"), ""]
    for at, end in (("list.txt", "\n"), ("LIST2.TXT", "\r\n")):
        (tmp_path / at).write_bytes(b"\xef\xbb\xbf" * (end == "\r\n") + end.join(lines).encode())
        found = reference.image_files(str(tmp_path / at))
        assert [path.name for path in found] == [*names, "0-0.png", "0-0.png"]
    (tmp_path / "wide.txt").write_text("set/a b.png", encoding="utf-16")
    with pytest.raises(QualityError, match=r"wide\.txt is not UTF-8 .*save it as UTF-8"):
        reference.image_files(str(tmp_path / "wide.txt"))


def test_runs_that_cache_the_same_features_at_once_do_not_conflict(tmp_path):
    path = tmp_path / "kept" / "same.npy"
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: reference.save(path, np.ones((200, 200))), range(64)))
    assert [found.name for found in path.parent.iterdir()] == ["same.npy"]
    assert (np.load(path) == 1).all()


def test_a_cache_that_takes_nothing_is_said_and_ends_nothing(tmp_path):
    folder, said = pictures(tmp_path / "set"), []
    (tmp_path / "kept").write_text("a file where the folder should be")
    found = reference.load(quality(folder, cache=str(tmp_path / "kept")), lambda: means, said.append)
    assert len(found.features) == 4 and said[0] == "reference: features of 4 images"
    assert said[1].startswith(f"reference: its features are not kept in evaluation.quality.cache='{tmp_path}/kept'")


def test_an_entry_that_is_stale_for_a_moment_is_read_again(tmp_path, monkeypatch):
    settings = quality(pictures(tmp_path / "set"), cache=str(tmp_path / "kept"))
    reference.load(settings, lambda: means, print)
    load, failures = np.load, [2]

    def stale(*arguments, **options):
        if failures[0]:
            failures[0] -= 1
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return load(*arguments, **options)

    monkeypatch.setattr(np, "load", stale)
    assert len(reference.load(settings, pytest.fail, pytest.fail).features) == 4 and failures == [0]


def test_features_of_a_reference_that_are_not_finite_are_refused(tmp_path):
    with pytest.raises(QualityError, match="4 reference images are not all finite"):
        reference.load(quality(pictures(tmp_path)), lambda: lambda images: means(images) * np.nan, print)
