"""The words world's oracle as a reward: drawn images score high, those of other words and colours low."""

import math

import numpy as np
import torch

from pcpo_ray import config, rewards
from pcpo_ray.data import worlds

TEXTS = ['the word "moon" in red on white', 'the word "fish" in yellow on blue']
IMAGES = np.stack([worlds.draw("words", text, seed) for seed, text in enumerate(TEXTS)])


def scores(kind, prompts):
    return rewards.load(config.WordsOracle(kind=kind), torch.device("cpu")).score(IMAGES, prompts)


def test_letters_score_by_their_likeness_to_the_fonts_own():
    assert min(scores("words_letters", TEXTS)) > 0.9
    assert max(scores("words_letters", TEXTS[::-1])) < 0.6


def test_colours_score_by_the_share_that_is_shown():
    assert scores("words_colours", TEXTS) == [1, 1]
    assert scores("words_colours", ['the word "moon" in blue on white', 'the word "moon" in red on white']) == [0.5, 0]


def test_a_prompt_that_is_no_caption_of_the_world_has_no_score():
    strange, known = scores("words_letters", ["a red circle", TEXTS[1]])
    assert math.isnan(strange) and known > 0.9
