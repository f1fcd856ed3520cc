"""Reference sets: which pictures, kept by what they are made of, of the run's size or none."""

import numpy as np
import pytest
from PIL import Image

from pcpo_ray import config
from pcpo_ray.errors import QualityError
from pcpo_ray.quality import features, reference


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


def test_features_are_computed_once_for_the_same_pictures_and_network(tmp_path):
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


def test_drawn_pictures_are_those_of_held_out_captions():
    settings = config.Quality(features=config.ClipFeatures(), reference=config.ShapesReference(count=70))
    found = reference.load(settings, Counted(), print)
    assert found.features.shape == (70, 3) and found.size == (64, 64)
    assert len(np.unique(found.features, axis=0)) > 60
    assert (reference.load(settings, Counted(), print).features == found.features).all()


def test_pictures_of_other_sizes_are_named_before_any_is_measured(tmp_path):
    folder = pictures(tmp_path / "set")
    pictures(folder, count=1, size=(8, 16), seed=1)
    with pytest.raises(QualityError, match=r"1 of 5 .*1-0\.png \(8 x 16\); most are 8 x 8"):
        reference.check(quality(folder))
    with pytest.raises(QualityError, match="the run's own are 16 x 16"):
        reference.check(quality(pictures(tmp_path / "other")), (16, 16))
    reference.check(quality(tmp_path / "other"), (8, 8))


def test_a_reference_that_is_not_there_too_small_or_no_picture_is_named(tmp_path):
    (tmp_path / "list.txt").write_text("absent.png\n")
    (tmp_path / "empty").mkdir()
    few = pictures(tmp_path / "few", count=2)
    broken = pictures(tmp_path / "broken")
    (broken / "0-0.png").write_bytes(b"no picture")
    for where, words in [
        ("nowhere", "expected a folder"),
        ("list.txt", r"names 1 pictures that are not there, such as .*absent\.png"),
        ("empty", "has no pictures"),
        (few, "has 2 pictures; expected more than the 2"),
        (broken, r"0-0\.png cannot be read"),
    ]:
        with pytest.raises(QualityError, match=words):
            reference.check(quality(tmp_path / where))


def test_the_base_models_pictures_are_the_runs_own_first_evaluation(tmp_path):
    reference.save(tmp_path / "features" / "step-000000.npy", np.ones((3, 2)))
    assert reference.base(tmp_path / "features" / "step-000000.npy", (8, 8)).features.shape == (3, 2)
    with pytest.raises(QualityError, match=r"step-000000\.npy is missing"):
        reference.base(tmp_path / "other" / "step-000000.npy", (8, 8))
