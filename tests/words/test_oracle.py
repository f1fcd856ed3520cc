"""The oracle: the font's own letters are like themselves, others less; colours are named as they were drawn."""

import numpy as np
import pytest

from pcpo_ray.errors import PromptError, RewardError
from pcpo_ray.words import oracle
from pcpo_ray.words.captions import captions, parse
from pcpo_ray.words.draw import HEIGHT, PALETTE, WIDTH, draw, ink_mask

TEXTS = captions("held_out")[::97]
IMAGES = [draw(parse(text), seed) for seed, text in enumerate(TEXTS)]
CAPTION = 'the word "moon" in red on white'


def test_drawn_words_are_like_the_fonts_own():
    assert min(map(oracle.letters, IMAGES, TEXTS)) > 0.9


def test_other_words_are_less_like():
    others = [*TEXTS[1:], TEXTS[0]]
    pairs = [pair for pair in zip(IMAGES, others, TEXTS, strict=True) if parse(pair[1]).word != parse(pair[2]).word]
    found = [oracle.letters(image, other) for image, other, _ in pairs]
    assert np.mean(found) < 0.5
    assert all(score < oracle.letters(image, own) for score, (image, _, own) in zip(found, pairs, strict=True))


def test_drawn_colours_are_the_ones_that_the_caption_names():
    assert set(map(oracle.colours, IMAGES, TEXTS)) == {1.0}


def test_a_colour_that_the_caption_does_not_name_costs_its_share():
    image = draw(parse(CAPTION), 0)
    assert oracle.colours(image, 'the word "moon" in blue on white') == 0.5
    assert oracle.colours(image, 'the word "moon" in white on blue') == 0
    assert oracle.colours(image, 'the word "moon"') == 1


def test_strokes_that_the_font_does_not_have_cost_likeness():
    image = draw(parse(CAPTION), 0)
    struck = image.copy()
    struck[11:13, 8:56] = PALETTE["red"]
    assert oracle.letters(struck, CAPTION) < oracle.letters(image, CAPTION) - 0.1
    bold = np.minimum(image, np.roll(image, 1, axis=1))
    assert oracle.letters(bold, CAPTION) < oracle.letters(image, CAPTION) - 0.1


def test_the_middle_of_the_ink_follows_the_word():
    middle, moved = (
        oracle.read(np.round(255 * (1 - ink_mask("moon", 16, dx, dy)))[..., None].repeat(3, 2).astype(np.uint8), "moon")
        for dx, dy in ((0, 0), (2, 1))
    )
    assert (moved.x - middle.x, moved.y - middle.y) == (pytest.approx(2, abs=1e-3), pytest.approx(1, abs=1e-3))


@pytest.mark.parametrize("seed", range(3))
def test_noise_and_plain_paper_show_no_word(seed):
    noise = np.random.default_rng(seed).integers(256, size=(HEIGHT, WIDTH, 3), dtype=np.uint8)
    plain = np.full((HEIGHT, WIDTH, 3), 80 * seed, np.uint8)
    for image in (noise, plain):
        assert oracle.read(image, "moon") is None
        assert oracle.letters(image, CAPTION) == oracle.colours(image, CAPTION) == 0


def test_images_of_another_size_and_other_prompts_are_refused():
    with pytest.raises(RewardError, match="64, 64"):
        oracle.letters(np.zeros((64, 64, 3), np.uint8), CAPTION)
    with pytest.raises(PromptError, match="purple"):
        oracle.letters(IMAGES[0], "a red circle")
