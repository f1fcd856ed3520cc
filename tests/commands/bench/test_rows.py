"""Rows: a ratio is figure by limit, repeat by repeat; both are measured in turn."""

import itertools

import pytest

from pcpo_ray.commands.bench.rows import Goal, Row, alternate, spread, timed
from pcpo_ray.errors import BenchError


def row(figures=(8.0, 9.0, 30.0), limits=(10.0, 10.0, 10.0), **more):
    return Row(name="one", unit="images/s", figures=figures, limits=limits, limit="the bare thing", **more)


def test_a_ratio_is_each_repeats_figure_by_its_own_limit():
    assert row().ratios == (0.8, 0.9, 3.0)
    found = spread(row().ratios)
    assert (found.median, found.low, found.high) == (0.9, 0.8, 3.0)
    assert row(limits=()).ratios == ()


@pytest.mark.parametrize(
    ("goal", "reached"),
    [
        (Goal(bound="at least", value=0.9), True),
        (Goal(bound="at least", value=0.95), False),
        (Goal(bound="at most", value=0.9), True),
        (Goal(bound="at most", value=0.85), False),
        (Goal(bound="at most", value=9.0, of="figure"), True),
        (Goal(bound="at most", value=8.5, of="figure"), False),
        (None, None),
    ],
)
def test_a_goal_is_for_the_median_of_the_ratio_or_of_the_figure(goal, reached):
    assert row(goal=goal).reached is reached


def test_what_was_not_measured_has_reached_nothing_and_missed_nothing():
    absent = Row(name="one", unit="images/s", goal=Goal(bound="at least", value=1.0), unmeasured="no GPU here")
    assert absent.reached is None and absent.ratios == ()


def test_figures_without_their_limits_are_refused():
    with pytest.raises(BenchError, match="3 figures and 2 limits"):
        row(limits=(1.0, 2.0))
    with pytest.raises(BenchError, match="0 figures"):
        Row(name="one", unit="s")
    with pytest.raises(BenchError, match="unmeasured='no GPU'"):
        row(unmeasured="no GPU")
    with pytest.raises(BenchError, match="no repeats"):
        spread([])


def test_figure_and_limit_take_turns_and_each_comes_first_as_often():
    calls, values = [], itertools.count(1)

    def measure(name):
        calls.append(name)
        return float(next(values))

    figures, limits = alternate(lambda: measure("figure"), lambda: measure("limit"), 4, lambda line: None)
    warm, rest = calls[:2], calls[2:]
    assert warm == ["figure", "limit"]
    assert rest == ["figure", "limit", "limit", "figure"] * 2
    assert figures == (3.0, 6.0, 7.0, 10.0) and limits == (4.0, 5.0, 8.0, 9.0)


def test_a_time_is_that_of_the_work():
    done = []
    assert timed(lambda: done.append(1)) >= 0.0 and done == [1]
