"""A study's verdict says no more than its p values."""

from types import SimpleNamespace

import pytest

from pcpo_ray.commands.study import verdict
from pcpo_ray.commands.study.results import Comparison
from pcpo_ray.runs.intervals import Estimate


def judged(seeds, *comparisons):
    found = [
        Comparison(
            arm=arm, other="ddpo", alike=True, change=Estimate(mean=mean, low=mean - half, high=mean + half), p=p,
            adjusted=p, speeds=[], speeds_adjusted=[],
        )
        for arm, mean, half, p in comparisons
    ]  # fmt: skip
    results = SimpleNamespace(study=SimpleNamespace(seeds=list(range(seeds))), comparisons=found)
    return verdict.verdict(results)


def test_nothing_is_told_from_three_seeds_whatever_the_interval_leaves_out():
    found = judged(3, ("pcpo", -0.0009, 0.0007, 0.25))
    assert found.text == "Nothing can be told from 3 seeds: p cannot be below 0.25." and found.tone == "unclear"
    (line,) = found.lines
    assert line.difference == "\u22120.0009 ± 0.0007"
    assert line.text.startswith("p 0.25: not told apart by 3 seeds; its t-interval leaves 0 out")


@pytest.mark.parametrize(("mean", "word", "tone"), [(0.02, "higher", "rose"), (-0.02, "lower", "fell")])
def test_a_difference_is_named_with_its_direction_where_p_allows_it(mean, word, tone):
    found = judged(8, ("pcpo", mean, 0.01, 0.008), ("other", 0.001, 0.01, 0.6))
    assert found.text == f"pcpo ends {word} than ddpo; 1 other comparison shows no difference." and found.tone == tone
    assert [line.tone for line in found.lines] == [tone, "unclear"]


def test_no_difference_at_enough_seeds_is_said_to_be_none_shown():
    assert judged(8, ("pcpo", 0.001, 0.01, 0.6)).text == "No difference is shown at 8 seeds."


def test_many_comparisons_at_few_seeds_can_tell_nothing():
    found = judged(6, *((f"arm{n}", 0.1, 0.01, 0.06) for n in range(2)))
    assert found.text == "Nothing can be told from 6 seeds: p of 2 comparisons cannot be below 0.062."
