"""Few seeds: what tests and intervals claim is what simulation finds."""

import itertools
import math

import numpy as np
import pytest

from pcpo_ray.commands.study import statistics
from pcpo_ray.commands.study.statistics import Reached

DRAWS = 2000


def draws(seed, *shape):
    return np.random.default_rng(seed).normal(size=(DRAWS, *shape))


@pytest.mark.parametrize("n", [2, 3, 5, 8])
def test_the_sign_flip_test_counts_every_assignment_of_signs(n):
    for differences in draws(n, n)[:50]:
        sums = [abs(math.fsum(s * d for s, d in zip(signs, differences, strict=True))) for signs in signs_of(n)]
        expected = np.mean([value >= sums[0] - 1e-12 for value in sums])
        assert statistics.sign_flip(differences) == pytest.approx(expected)


def signs_of(n):
    """Every assignment, all plus first."""
    return itertools.product((1, -1), repeat=n)


@pytest.mark.parametrize("n", [3, 5, 8])
def test_seeds_that_all_agree_have_the_smallest_p_there_is(n):
    assert statistics.sign_flip(np.arange(1.0, n + 1)) == statistics.least_p(n) == 2 / 2**n


def test_no_difference_at_all_has_p_1():
    assert statistics.sign_flip(np.zeros(5)) == 1


@pytest.mark.parametrize("skewed", [False, True])
@pytest.mark.parametrize("n", [5, 6, 8])
def test_equal_arms_differ_no_more_often_than_the_level(n, skewed):
    arms = draws(n, 2, n)
    arms = np.exp(2 * arms) if skewed else arms
    found = np.array([statistics.sign_flip(one - other) for one, other in arms])
    for level in (0.05, 0.1, 0.3):
        allowed = 4 * math.sqrt(level * (1 - level) / DRAWS)
        assert np.mean(found <= level) <= level + allowed
    assert np.mean(found <= 2 / 2**n) > 0  # it can find something at all


def test_holm_is_as_it_is_defined():
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.holm([0.5, 0.9]) == [1.0, 1.0]
    assert statistics.holm([]) == []


def test_holm_keeps_the_chance_of_any_false_difference_at_the_level():
    any_found = 0
    rng = np.random.default_rng(1)
    for _ in range(DRAWS):
        base = rng.normal(size=8)
        found = [statistics.sign_flip(rng.normal(size=8) - base) for _ in range(5)]
        any_found += min(statistics.holm(found)) <= 0.05
    assert any_found / DRAWS <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / DRAWS)


@pytest.mark.parametrize("n", [2, 5, 10])
def test_the_t_interval_has_the_coverage_it_claims(n):
    inside = [found.low <= 0 <= found.high for found in map(statistics.interval, draws(n, n))]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.02)


def test_one_seed_has_no_interval():
    found = statistics.interval(np.array([1.0]))
    assert found.mean == 1 and math.isnan(found.low) and math.isnan(found.high)


@pytest.mark.parametrize("n, least", [(3, 0.69), (5, 0.88), (8, 0.92), (12, 0.93)])
def test_the_ratio_of_paired_means_is_covered_as_often_as_is_said(n, least):
    rng = np.random.default_rng(n)
    inside = 0
    for _ in range(300):
        seed = rng.normal(0, 1, n)
        arm, other = 10 + seed + rng.normal(0, 1.5, n), 14 + seed + rng.normal(0, 1.5, n)
        found = statistics.ratio(other, arm)
        inside += found.low <= 1.4 <= found.high
    assert inside / 300 >= least


def test_pairing_narrows_the_ratio():
    rng = np.random.default_rng(0)
    seed = rng.normal(20, 5, 6)
    paired, shuffled = (statistics.ratio(1.3 * seed, other) for other in (seed, np.roll(seed, 3)))
    assert paired.high - paired.low < 1e-9 < shuffled.high - shuffled.low
    assert paired.mean == pytest.approx(1.3)


def test_a_target_is_reached_where_the_line_between_evaluations_crosses_it():
    assert statistics.crossing([0, 10, 20], [0.0, 1.0, 3.0], 2.0) == 15
    assert statistics.crossing([0, 10, 20], [0.0, 1.0, 0.5], 0.75) == 7.5  # the first time
    assert statistics.crossing([5, 10], [2.0, 3.0], 1.0) == 5  # before the first evaluation, for all one knows
    assert statistics.crossing([0, 10], [0.0, 1.0], 1.5) is None
    assert statistics.crossing([0, 10, 20], [0.0, math.nan, 2.0], 1.0) == 10
    assert statistics.crossing([0, 10], [math.nan, math.nan], 1.0) is None


def at(times, end=20.0):
    """Times, None where the target was not reached."""
    values = np.array([end if time is None else time for time in times], float)
    return Reached(times=values, reached=np.array([time is not None for time in times]), end=end)


def test_runs_that_never_reach_a_target_are_cut_off_at_their_end():
    x = [0, 10, 20]
    found = statistics.reached([(x, [0.0, 1.0, 2.0]), (x, [0.0, 0.1, 0.2])], [1.5, 1.5])
    assert found.times.tolist() == [15, 20] and found.reached.tolist() == [True, False]


@pytest.mark.parametrize(
    "times, median", [([1, 2, 3], 2), ([1, 2, None], 2), ([1, None, None], None), ([1, 3, None, None], None)]
)
def test_the_median_is_known_while_fewer_than_half_are_cut_off(times, median):
    assert at(times).median == median


def test_a_ratio_says_on_which_side_of_it_the_truth_is():
    fast, slow = at([5, 6, 7]), at([10, 12, 14])
    assert statistics.speed(fast, slow).ratio.mean == 2 and statistics.speed(fast, slow).bound == ""
    assert statistics.speed(fast, at([10, 12, None])).bound == ">"
    assert statistics.speed(at([10, 12, None]), fast).bound == "<"
    neither = statistics.speed(at([10, None, None]), at([None, None, None]))
    assert neither.bound == "?" and math.isnan(neither.ratio.mean)


def test_the_bound_of_a_cut_off_ratio_is_one():
    """The true ratio, had training gone on, is on the side that is said."""
    rng = np.random.default_rng(3)
    for _ in range(100):
        fast, slow = rng.uniform(1, 18, 5), rng.uniform(5, 60, 5)
        cut = at([time if time < 20 else None for time in slow])
        found = statistics.speed(at(fast), cut)
        truth = slow.mean() / fast.mean()
        assert found.ratio.mean < truth if found.bound == ">" else found.ratio.mean == pytest.approx(truth)


def test_times_that_are_cut_off_keep_the_level_of_the_test():
    rng = np.random.default_rng(4)
    found = []
    for _ in range(DRAWS):
        one, other = (at([time if time < 20 else None for time in rng.exponential(15, 8)]) for _ in range(2))
        found.append(statistics.speed(one, other).p)
    assert np.mean(np.array(found) <= 0.05) <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / DRAWS)
