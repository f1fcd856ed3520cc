"""Sizes that keep nobody waiting."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcpo_ray.training.scheduling.sizing import Seen, better


def seen(**changes):
    return Seen(
        **{"work": {"samplers": 80.0, "scorers": 1.0}, "learning": 20.0, "groups": 8, "overlapped": False, **changes}
    )


def settled(found, sizes, bounds):
    for _ in range(20):
        after = better(found, sizes, bounds)
        if after == sizes:
            return sizes
        sizes = after
    raise AssertionError(f"never settles: {sizes}")


def test_seconds_count_whole_groups_and_the_slowest_role():
    assert seen().seconds({"samplers": 1, "scorers": 1}) == 100.0
    assert seen().seconds({"samplers": 3, "scorers": 1}) == 30.0 + 20.0
    assert seen(overlapped=True).seconds({"samplers": 8, "scorers": 1}) == 20.0


@pytest.mark.parametrize(("overlapped", "wanted"), [(False, 8), (True, 4)])
def test_it_grows_while_the_learner_waits_and_no_further(overlapped, wanted):
    bounds = {"samplers": (1, 16)}
    assert settled(seen(overlapped=overlapped), {"samplers": 1, "scorers": 1}, bounds)["samplers"] == wanted


def test_it_shrinks_where_samplers_wait_to_be_admitted():
    found = settled(seen(overlapped=True), {"samplers": 8, "scorers": 1}, {"samplers": (1, 16)})
    assert found["samplers"] == 4


def test_a_slow_scorer_is_what_grows():
    slow = seen(work={"samplers": 8.0, "scorers": 80.0})
    found = better(slow, {"samplers": 2, "scorers": 1}, {"samplers": (1, 4), "scorers": (1, 4)})
    assert found["scorers"] == 2 and found["samplers"] <= 2


@given(
    work=st.floats(0.1, 1000),
    learning=st.floats(0.1, 1000),
    groups=st.integers(1, 64),
    overlapped=st.booleans(),
    start=st.integers(1, 16),
)
def test_it_settles_within_its_bounds(work, learning, groups, overlapped, start):
    found = Seen(work={"samplers": work}, learning=learning, groups=groups, overlapped=overlapped)
    sizes, bounds = {"samplers": start}, {"samplers": (1, 16)}
    for _ in range(40):
        sizes = better(found, sizes, bounds)
        assert 1 <= sizes["samplers"] <= 16
    assert better(found, sizes, bounds) == sizes


def test_ranks_that_sample_share_the_work_while_they_do_not_learn():
    none = {"samplers": 0, "scorers": 1}
    assert seen(ranks=2).seconds(none) == 40.0 + 20.0
    assert seen(ranks=2).seconds({"samplers": 2, "scorers": 1}) == 20.0 + 20.0
    assert seen(ranks=2, overlapped=True).seconds(none) == 40.0 + 20.0  # they do one after the other all the same
    assert seen(ranks=2, overlapped=True).seconds({"samplers": 2, "scorers": 1}) == 20.0 + 2 * 20.0 / 4
    slow = {"samplers": 8.0, "scorers": 80.0}
    assert seen(ranks=2, overlapped=True, work=slow).seconds({"samplers": 2, "scorers": 1}) == 80.0
