"""Precision, recall, density and coverage against loops that follow the papers' definitions."""

import numpy as np
import pytest
import torch

from pcpo_ray.rewards.quality import neighbours


def reach(points, n, k):
    return sorted(np.linalg.norm(points[n] - other) for m, other in enumerate(points) if m != n)[k - 1]


def brute(made, reference, k):
    def near(point, centre, radius):
        return np.linalg.norm(point - centre) <= radius

    def inner(point, centre, radius):
        return np.linalg.norm(point - centre) < radius

    theirs = [reach(reference, n, k) for n in range(len(reference))]
    ours = [reach(made, n, k) for n in range(len(made))]
    inside = [[near(point, centre, r) for centre, r in zip(reference, theirs, strict=True)] for point in made]
    held = [any(near(point, centre, r) for centre, r in zip(made, ours, strict=True)) for point in reference]
    balls = [[inner(point, centre, r) for centre, r in zip(reference, theirs, strict=True)] for point in made]
    covered = [any(inner(point, centre, r) for point in made) for centre, r in zip(reference, theirs, strict=True)]
    return {
        "precision": np.mean([any(row) for row in inside]),
        "recall": np.mean(held),
        "density": np.sum(balls) / (k * len(made)),
        "coverage": np.mean(covered),
    }


@pytest.mark.parametrize(("count", "others", "k", "shift"), [(12, 20, 1, 0.0), (25, 14, 3, 0.8), (30, 30, 5, 2.5)])
def test_they_are_what_loops_over_all_pairs_find(count, others, k, shift):
    rng = np.random.default_rng(count)
    made, reference = rng.normal(shift, 0.7, (count, 3)), rng.normal(size=(others, 3))
    assert neighbours.compare(made, reference, k) == pytest.approx(brute(made, reference, k))


def test_they_do_not_depend_on_how_many_rows_are_held_at_once(monkeypatch):
    rng = np.random.default_rng(0)
    made, reference = rng.normal(size=(50, 4)), rng.normal(0.2, 1, (70, 4))
    whole = neighbours.compare(made, reference, 3)
    monkeypatch.setattr(neighbours, "ROWS", 7)
    assert neighbours.compare(made, reference, 3) == whole


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_set_against_itself_has_every_figure_at_one(dtype):
    points = np.random.default_rng(0).normal(size=(40, 8)).astype(dtype)
    assert neighbours.compare(points, points, 5) == {"precision": 1, "recall": 1, "density": 1, "coverage": 1}


def test_ties_on_a_balls_surface_count_as_in_each_papers_own_code():
    grid = np.array([[x, y] for x in range(4) for y in range(4)], np.float64)
    shifted = grid + np.array([0, 1])
    assert neighbours.compare(shifted, grid, 3) == pytest.approx(brute(shifted, grid, 3))
    line = np.array([[0.0], [1.0], [2.0], [3.0]])
    found = neighbours.compare(line + 4, line, 1)  # only 4 is within reach of any, of 3 alone, and just so
    assert (found["precision"], found["recall"], found["density"], found["coverage"]) == (0.25, 0.25, 0, 0)
    twins = np.zeros((5, 2))  # balls without an inside
    assert neighbours.compare(twins, twins, 2) == {"precision": 1, "recall": 1, "density": 0, "coverage": 0}


def test_images_of_one_mode_are_precise_and_lack_recall_and_coverage():
    rng = np.random.default_rng(0)
    modes = np.concatenate([rng.normal(0, 0.1, (50, 4)), rng.normal(5, 0.1, (50, 4))])
    found = neighbours.compare(rng.normal(0, 0.1, (100, 4)), modes, 5)
    assert found["precision"] > 0.9 and found["recall"] <= 0.5 and found["coverage"] <= 0.5


def test_a_radius_reaches_to_the_kth_other_image_twins_counted():
    line = torch.tensor([[0.0], [0.0], [1.0], [3.0]], dtype=torch.float64)
    assert neighbours.radii(line, 1).tolist() == [0, 0, 1, 2]
    assert neighbours.radii(line, 2).tolist() == [1, 1, 1, 3]
