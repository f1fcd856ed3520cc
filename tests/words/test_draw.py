"""Drawings: the same seed gives the same bytes, the colours are those asked for, and nothing touches the edge."""

import numpy as np

from pcpo_ray.words.captions import PAIRS, captions, parse, words
from pcpo_ray.words.draw import HEIGHT, PALETTE, REACH, SIZES, WIDTH, draw, ink_mask

CAPTION = parse('the word "moon" in red on white')


def test_the_same_caption_and_seed_give_the_same_bytes():
    first = draw(CAPTION, 3)
    assert first.shape == (HEIGHT, WIDTH, 3) and first.dtype == np.uint8
    assert np.array_equal(first, draw(CAPTION, 3))


def test_another_seed_gives_another_image():
    assert len({draw(CAPTION, seed).tobytes() for seed in range(20)}) == 20


def test_colours_that_a_caption_leaves_open_differ_from_image_to_image():
    papers = [np.median(draw(parse('the word "moon"'), seed), axis=(0, 1)) for seed in range(60)]
    near = {min(PALETTE, key=lambda name: np.abs(paper - PALETTE[name]).sum()) for paper in papers}
    assert near == {paper for _, paper in PAIRS}


def test_all_four_edges_are_paper_alone():
    for seed, text in enumerate(captions("held_out")[::400]):
        image = draw(parse(text), seed)
        for edge in (image[0], image[-1], image[:, 0], image[:, -1]):
            assert np.ptp(edge, axis=0).max() == 0


def test_no_word_is_cut_at_the_farthest_places_of_the_largest_letters():
    for word in words()[::20]:
        whole = ink_mask(word, max(SIZES)).sum(dtype=float)
        for dx in (-REACH[0], REACH[0]):
            for dy in (-REACH[1], REACH[1]):
                assert ink_mask(word, max(SIZES), dx, dy).sum(dtype=float) == whole


def test_a_moved_word_is_the_same_letters_elsewhere():
    mask = ink_mask("moon", SIZES[0])
    assert np.array_equal(np.roll(mask, (1, 2), axis=(0, 1)), ink_mask("moon", SIZES[0], 2, 1))
