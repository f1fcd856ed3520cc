"""Grids, tile seams and blocks are seen on images of all kinds; noise, edges and a horizon are none."""

import numpy as np
import pytest
import torch

from pcpo_ray import config, rewards
from pcpo_ray.shapes.captions import parse
from pcpo_ray.shapes.draw import draw
from tests.support.same_images import words

GRID = rewards.load(config.Grid(kind="grid"), torch.device("cpu"))
SIDE = 192


def measured(image):
    return GRID.score(np.clip(np.round(image), 0, 255).astype(np.uint8)[None], [""])[0]


def smooth():
    """Something like a photograph: smooth light, a horizon and texture."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    light = 90 + 60 * np.sin(3 * x + 1) * np.cos(2 * y) - 40 * (y > 0.6)
    return light[..., None] + rng.normal(0, 6, (SIDE, SIDE, 3))


SCENES = {
    "photograph": smooth(),
    "word": words("HELLO", side=SIDE, size=36).astype(float),
    "shapes": np.kron(draw(parse("a red circle above a blue square"), 0), np.ones((3, 3, 1))),
    "noise": np.random.default_rng(0).normal(128, 20, (SIDE, SIDE, 3)),
}


def with_grid(image, levels=8, period=16):
    marked = image.copy()
    marked[::period] -= levels
    marked[:, ::period] -= levels
    return marked


def with_seams(image, tile=48):
    offsets = np.random.default_rng(0).normal(0, 12, (-(-SIDE // tile),) * 2)
    return image + np.kron(offsets, np.ones((tile, tile)))[: image.shape[0], : image.shape[1], None]


def with_blocks(image, size=8):
    rows, columns = image.shape[0] // size, image.shape[1] // size
    return np.kron(image[: rows * size, : columns * size][::size, ::size], np.ones((size, size, 1)))


@pytest.mark.parametrize(
    ("scene", "spoilt"),
    [*((scene, with_grid) for scene in SCENES), *((scene, with_seams) for scene in SCENES if scene != "noise")],
)
def test_regular_lines_are_seen_on_every_scene(scene, spoilt):
    image = SCENES[scene][:SIDE, :SIDE]
    plain, marked = measured(image), measured(spoilt(image))
    assert marked > plain + 1.5, (plain, marked)


def test_blocks_are_seen_on_a_photograph():
    assert measured(with_blocks(SCENES["photograph"])) > measured(SCENES["photograph"]) + 0.3


@pytest.mark.parametrize(("scene", "most"), [("photograph", 1), ("word", 0.5), ("shapes", 0.5), ("noise", 3)])
def test_scenes_without_a_pattern_have_little(scene, most):
    assert measured(SCENES[scene]) < most


def test_the_measure_is_the_levels_of_the_lines():
    flat = np.full((SIDE, SIDE, 3), 128.0)
    assert measured(flat) == 0
    for levels in (2, 8, 20):
        assert measured(with_grid(flat, levels)) == pytest.approx(levels, rel=0.1)


def test_a_tiny_image_has_no_measure():
    assert np.isnan(GRID.score(np.zeros((1, 13, 64, 3), np.uint8), [""])[0])
