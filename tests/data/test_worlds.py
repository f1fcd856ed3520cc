"""The worlds behind one door: models by name, images of captions, and words that captions do not have."""

import numpy as np
import pytest

from pcpo_ray import shapes
from pcpo_ray.data import worlds
from pcpo_ray.errors import ModelError, PromptError
from pcpo_ray.shapes import captions as shapes_captions
from pcpo_ray.shapes import draw as shapes_draw


def test_a_shipped_model_is_found_by_its_name_alone():
    assert worlds.checkpoint("shapes-sd") == shapes.checkpoint("shapes-sd")
    assert worlds.of_folder(worlds.checkpoint("shapes-sd")) == "shapes"


def test_a_name_that_is_no_models_is_refused_with_those_there_are():
    with pytest.raises(ModelError, match=r"'castles', expected one that the package ships: shapes-clip, .*shapes-sd"):
        worlds.checkpoint("castles")
    with pytest.raises(ModelError, match=r"'words-x' \(did you mean 'words-\w+'\?\)"):
        worlds.checkpoint("words-x")


@pytest.mark.parametrize(
    ("model", "world"), [("shapes-sd", "shapes"), ("words-flux", "words"), ("org/words", None), ("wordsmith", None)]
)
def test_a_models_name_tells_its_world(model, world):
    assert worlds.of_model(model) == world


def test_another_models_folder_is_of_no_world(tmp_path):
    assert worlds.of_folder(tmp_path) is None


@pytest.mark.parametrize("world", worlds.NAMES)
def test_the_example_of_each_world_is_drawn_and_has_no_unknown_word(world):
    image = worlds.draw(world, worlds.EXAMPLES[world], 0)
    assert image.dtype == np.uint8 and image.std() > 10
    assert worlds.unknown_words(world, worlds.EXAMPLES[world]) == []
    assert worlds.unknown_words(world, "zxqj") == ["zxqj"]


def test_a_world_draws_its_own_captions_only():
    text = worlds.EXAMPLES["shapes"]
    assert np.array_equal(worlds.draw("shapes", text, 3), shapes_draw.draw(shapes_captions.parse(text), 3))
    with pytest.raises(PromptError):
        worlds.draw("words", text, 3)
