"""ImageReward's wrapper, which runs beside that package in an environment of its own: what it hands over."""

import sys
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from pcpo_ray.rewards.image_reward import Scorer

IMAGES = np.arange(2 * 5 * 7 * 3, dtype=np.uint8).reshape(2, 5, 7, 3)


class Model:
    """Takes what the package's `score` takes, a prompt and an image, and tells them apart."""

    def score(self, prompt, image):
        assert isinstance(prompt, str) and isinstance(image, Image.Image)
        return len(prompt) + np.asarray(image).mean(dtype=np.float64)


@pytest.fixture
def loaded(monkeypatch):
    """A module of the package's name, and what it was asked to load."""
    asked: list[tuple[str, ...]] = []

    def load(name, device, med_config):
        asked.append((name, device, med_config))
        return Model()

    module = ModuleType("ImageReward")
    monkeypatch.setattr(module, "load", load, raising=False)
    monkeypatch.setitem(sys.modules, "ImageReward", module)
    return asked


def test_each_image_is_scored_with_its_own_prompt_in_the_packages_order(loaded):
    scorer = Scorer(model="ImageReward.pt", med_config="med_config.json")
    assert loaded == [("ImageReward.pt", "cpu", "med_config.json")]
    expected = [len(text) + image.mean() for text, image in zip(("a", "long one"), IMAGES, strict=True)]
    assert scorer.score(IMAGES, ["a", "long one"]) == pytest.approx(expected)
