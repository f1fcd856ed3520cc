"""Spread of words: it is 0 where all images of a prompt have one place and one colour, and a distance elsewhere."""

import numpy as np
import pytest
import torch

from pcpo_ray import config, rewards
from pcpo_ray.words.captions import parse
from pcpo_ray.words.draw import PALETTE, TONE, draw, ink_mask

PROMPT = 'the word "moon"'


def scores(kind, images):
    reward = rewards.load(config.WordsSpread(kind=kind), torch.device("cpu"))
    return reward.score_group(np.stack(images), PROMPT)


def at(dx, dy, ink="black", paper="white"):
    mask = ink_mask("moon", 16, dx, dy)[..., None]
    return np.round(mask * PALETTE[ink] + (1 - mask) * PALETTE[paper]).astype(np.uint8)


def test_one_place_and_one_colour_have_no_spread():
    assert scores("words_places", [at(1, 0)] * 3) == scores("words_tones", [at(1, 0)] * 3) == [0, 0, 0]


def test_places_are_as_many_pixels_apart_as_the_words():
    assert scores("words_places", [at(0, 0), at(2, 0), at(2, 1)]) == pytest.approx(
        [(2 + 5**0.5) / 2, (2 + 1) / 2, (1 + 5**0.5) / 2], abs=0.01
    )
    assert scores("words_places", [at(0, 0), at(0, 0, "white", "red")]) == pytest.approx([0, 0], abs=0.01)


def test_tones_are_the_distance_of_ink_and_paper():
    black, white = (np.array(PALETTE[name]) for name in ("black", "white"))
    apart = np.sqrt(np.mean((black - white) ** 2.0))
    swapped = scores("words_tones", [at(0, 0), at(2, 1, "white", "black")])
    assert swapped == pytest.approx([apart, apart], rel=0.1)
    alike = scores("words_tones", [draw(parse(f"{PROMPT} in red on white"), seed) for seed in range(8)])
    assert 0 < max(alike) < TONE


def test_an_image_of_one_colour_stands_in_the_middle():
    plain = np.full((24, 64, 3), PALETTE["white"], np.uint8)
    assert scores("words_places", [plain, plain]) == [0, 0]
    assert max(scores("words_places", [plain, at(0, 0)])) < 3


def test_a_group_of_one_image_has_no_score():
    assert np.isnan(scores("words_tones", [at(0, 0)])).all()
