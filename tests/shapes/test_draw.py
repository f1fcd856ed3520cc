"""Drawings: the same seed gives the same bytes, another seed another image."""

import numpy as np

from pcpo_ray.shapes.captions import parse
from pcpo_ray.shapes.draw import SIDE, draw

CAPTION = parse("a red circle above a blue square")


def test_the_same_caption_and_seed_give_the_same_bytes():
    first = draw(CAPTION, 3)
    assert first.shape == (SIDE, SIDE, 3) and first.dtype == np.uint8
    assert np.array_equal(first, draw(CAPTION, 3))


def test_another_seed_gives_another_image():
    assert len({draw(CAPTION, seed).tobytes() for seed in range(20)}) == 20


def test_the_background_is_light_and_reaches_all_four_edges():
    for seed in range(20):
        image = draw(CAPTION, seed)
        for edge in (image[0], image[-1], image[:, 0], image[:, -1]):
            assert edge.min() > 200 and np.ptp(edge, axis=0).max() == 0
