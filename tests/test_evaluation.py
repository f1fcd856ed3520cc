"""Intervals that mean what they say."""

import numpy as np
import pytest

from pcpo_ray import evaluation


def test_the_interval_covers_the_truth_about_as_often_as_it_claims():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(100):
        prompts = rng.normal(1.0, 1.0, (30, 1))  # prompts differ more than images of one prompt do
        found = evaluation.estimate(prompts + rng.normal(0, 0.1, (30, 4)))
        hits += found.low <= 1.0 <= found.high
    assert 85 <= hits <= 99


def test_images_of_one_prompt_do_not_narrow_it():
    values = np.random.default_rng(0).normal(size=(20, 1))
    few, many = evaluation.estimate(values), evaluation.estimate(np.repeat(values, 50, axis=1))
    assert (few.low, few.high) == pytest.approx((many.low, many.high))


def test_pairs_are_compared_image_by_image():
    before = np.random.default_rng(0).normal(0, 10, (16, 2))
    gained = evaluation.paired(before, before + 0.5)
    assert gained.mean == pytest.approx(0.5)
    assert gained.low == pytest.approx(0.5, abs=1e-9)


def test_missing_scores_are_left_out_and_all_missing_is_not_a_number():
    values = np.array([[1.0, np.nan], [3.0, 3.0], [np.nan, np.nan]])
    assert evaluation.estimate(values).mean == 2.0
    assert np.isnan(evaluation.estimate(np.full((2, 2), np.nan)).mean)
