"""The oracle: right on drawn images, fact by fact; silent where nothing is shown; not fooled by a changed fact."""

from collections import defaultdict

import numpy as np
import pytest

from pcpo_ray.commands.pretrain.shapes_world import sample_captions
from pcpo_ray.commands.pretrain.variants import variants
from pcpo_ray.errors import PromptError, RewardError
from pcpo_ray.shapes.captions import parse
from pcpo_ray.shapes.draw import draw
from pcpo_ray.shapes.oracle import Verdict, connected, judge, read


@pytest.fixture(scope="module")
def drawn():
    texts = sample_captions(np.random.default_rng(0), 400, "held_out")
    return [(text, draw(parse(text), seed)) for seed, text in enumerate(texts)]


def test_each_kind_of_fact_is_read_right_on_99_of_100_drawn_images(drawn):
    held = defaultdict(list)
    for text, image in drawn:
        for fact, value in judge(image, text).facts.items():
            held[fact.split()[0]].append(value)
    assert set(held) == {"count", "object", "colour", "size", "relation", "position"}
    for fact, values in held.items():
        assert len(values) >= 40, fact
        assert np.mean(values) >= 0.99, fact


def test_a_caption_with_one_fact_changed_is_never_found_right(drawn):
    for text, image in drawn[:80]:
        for kind, others in variants(parse(text)).items():
            for other in others:
                verdict = judge(image, other.text)
                assert not verdict.right, (kind, text, other.text)
                assert verdict.accuracy > 0, (kind, text, other.text)


def noise(kind):
    rng = np.random.default_rng(0)
    return {
        "uniform": rng.integers(0, 256, (64, 64, 3)).astype(np.uint8),
        "gaussian": np.clip(rng.normal(220, 60, (64, 64, 3)), 0, 255).astype(np.uint8),
        "blank": np.full((64, 64, 3), 230, np.uint8),
        "red all over": np.full((64, 64, 3), (220, 40, 45), np.uint8),
        "faint": np.clip(rng.normal(228, 6, (64, 64, 3)), 0, 255).astype(np.uint8),
    }[kind]


@pytest.mark.parametrize("kind", ["uniform", "gaussian", "blank", "red all over", "faint"])
def test_nothing_is_seen_in_noise_and_in_one_tone(kind):
    assert read(noise(kind)) == []
    verdict = judge(noise(kind), "a red circle above a blue square")
    assert verdict.accuracy == 0 and not verdict.right


def test_a_blob_is_counted_but_has_no_shape():
    image = np.full((64, 64, 3), 230, np.uint8)
    image[20:24, 10:50] = (45, 75, 210)
    (seen,) = read(image)
    assert seen.shape is None and seen.colour == "blue"


def test_two_things_that_touch_are_told_apart_by_colour():
    image = np.full((64, 64, 3), 230, np.uint8)
    image[10:26, 10:26], image[10:26, 26:42] = (220, 40, 45), (45, 75, 210)
    assert {(thing.shape, thing.colour) for thing in read(image)} == {("square", "red"), ("square", "blue")}
    assert judge(image, "a red square to the left of a blue square").right


def test_swapped_things_keep_the_facts_that_still_hold():
    image = draw(parse("a blue circle above a red square"), 1)
    assert judge(image, "a red circle above a blue square").facts == {
        "count": True,
        "object 1": True,
        "colour 1": False,
        "object 2": True,
        "colour 2": False,
        "relation": True,
    }


def test_one_thing_too_many_makes_the_count_false():
    facts = judge(draw(parse("a red circle and a blue square"), 1), "a red circle").facts
    assert facts == {"count": False, "object 1": True, "colour 1": True}


def test_accuracy_is_the_share_of_facts_that_hold():
    verdict = Verdict(facts={"count": True, "object 1": True, "colour 1": False, "position": False})
    assert verdict.accuracy == 0.5 and not verdict.right


def test_connected_regions_join_across_diagonals_and_through_later_rows():
    mask = np.array([[1, 0, 1, 0, 1], [1, 0, 1, 0, 0], [1, 1, 1, 0, 1], [0, 0, 0, 1, 0]], dtype=bool)
    labels = connected(mask)
    assert labels[0, 0] == labels[0, 2] == labels[3, 3] == labels[2, 4]
    assert labels[0, 4] not in (0, labels[0, 0]) and labels.max() == 2
    assert not labels[~mask].any()


def test_an_image_of_another_size_or_an_unknown_caption_is_refused():
    with pytest.raises(RewardError, match="32, 32"):
        read(np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(PromptError, match="a dog"):
        judge(noise("blank"), "a dog")
