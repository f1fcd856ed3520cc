import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pcpo_ray.algorithm import advantages
from pcpo_ray.algorithm.advantages import (
    PromptHistory,
    batch_relative,
    clip_advantage,
    degenerate_groups,
    group_relative,
)
from pcpo_ray.errors import ConfigError, TrainingError

SCORES = torch.tensor([[1.0, 2.0, 3.0], [10.0, 10.0, 40.0]], dtype=torch.float64)
DANCE: dict[str, Any] = {"scale": "group", "correction": 1, "epsilon": 1e-8}
FLOW: dict[str, Any] = {"scale": "batch", "correction": 0, "epsilon": 1e-4}


def test_within_a_group_the_deviation_divides_by_one_less_than_its_size():
    expected = [[-1.0, 0.0, 1.0], [-10 / 300**0.5, -10 / 300**0.5, 20 / 300**0.5]]
    torch.testing.assert_close(group_relative(SCORES, **DANCE), torch.tensor(expected, dtype=torch.float64))


def test_against_the_batch_only_the_center_is_the_group_s():
    deviation = SCORES.std(correction=0) + 1e-4
    expected = (SCORES - torch.tensor([[2.0], [20.0]])) / deviation
    torch.testing.assert_close(group_relative(SCORES, **FLOW), expected)


@pytest.mark.parametrize("settings", [DANCE, FLOW, {"scale": "group", "correction": 0, "epsilon": 0.0}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_group_of_equal_scores_gives_exactly_zero(settings, dtype):
    scores = torch.tensor([[0.1] * 7, [0.1, 0.7, 0.3, 0.1, 0.5, 0.2, 0.9]], dtype=dtype)
    made = group_relative(scores, **settings)
    assert made[0].eq(0).all() and made[1].ne(0).any() and made.dtype == dtype
    assert degenerate_groups(scores) == 1
    assert group_relative(scores[:1], **settings).eq(0).all()


@given(
    st.lists(st.lists(st.floats(-10, 10), min_size=4, max_size=4), min_size=1, max_size=5),
    st.sampled_from([DANCE, FLOW]),
)
def test_advantages_of_a_group_add_up_to_nothing_and_keep_its_order(rows, settings):
    scores = torch.tensor(rows, dtype=torch.float64)
    made = group_relative(scores, **settings)
    assert made.isfinite().all()
    torch.testing.assert_close(made.sum(1), torch.zeros(len(rows), dtype=torch.float64), rtol=0, atol=1e-6)
    best = scores.argmax(1, keepdim=True)
    assert (made.gather(1, best) >= made.amax(1, keepdim=True) - 1e-12).all()


def test_large_float32_scores_keep_differences_that_float32_sums_lose():
    scores = torch.tensor([[1e7, 1e7 + 1, 1e7 + 2]])
    torch.testing.assert_close(group_relative(scores, **DANCE), torch.tensor([[-1.0, 0.0, 1.0]]))


def test_a_group_of_one_is_refused():
    with pytest.raises(TrainingError, match="a group of one has no relative advantage"):
        group_relative(torch.ones(4, 1), **DANCE)


def test_batch_relative_compares_with_every_score():
    expected = (SCORES - 11) / (SCORES.std(correction=0) + 1e-6)
    torch.testing.assert_close(batch_relative(SCORES, epsilon=1e-6), expected)
    assert batch_relative(torch.full((2, 3), 0.1), epsilon=0.0).eq(0).all()


def test_a_prompt_is_compared_with_the_batch_until_it_has_enough_scores():
    history = PromptHistory(buffer=8, minimum=6)
    first = history.normalise(["a", "b"], SCORES)
    torch.testing.assert_close(first, batch_relative(SCORES, epsilon=1e-6))
    second = history.normalise(["a", "c"], SCORES + 1)
    own = torch.tensor([1.0, 2.0, 3.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    torch.testing.assert_close(second[0], (SCORES[0] + 1 - own.mean()) / (own.std(correction=0) + 1e-6))
    torch.testing.assert_close(second[1], batch_relative(SCORES + 1, epsilon=1e-6)[1])


def test_only_the_last_scores_of_a_prompt_are_remembered():
    history = PromptHistory(buffer=4, minimum=4)
    history.normalise(["a"], torch.full((1, 4), 1000.0))
    made = history.normalise(["a"], torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    torch.testing.assert_close(made, batch_relative(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), epsilon=1e-6))
    assert history.state() == {"a": [1.0, 2.0, 3.0, 4.0]}


def test_rows_of_one_prompt_are_remembered_together_in_any_order():
    scores = torch.tensor([[1.0, 2.0], [5.0, 9.0]], dtype=torch.float64)
    made = PromptHistory(buffer=4, minimum=4).normalise(["a", "a"], scores)
    turned = PromptHistory(buffer=4, minimum=4).normalise(["a", "a"], scores.flip(0))
    torch.testing.assert_close(made, batch_relative(scores, epsilon=1e-6))
    torch.testing.assert_close(made, turned.flip(0))


def test_a_prompt_whose_scores_never_differ_gets_exactly_zero():
    history = PromptHistory(buffer=8, minimum=2)
    assert history.normalise(["a"], torch.full((1, 7), 0.1)).eq(0).all()


def test_a_history_restored_from_json_goes_on_as_if_it_had_never_stopped():
    history = PromptHistory(buffer=8, minimum=3)
    history.normalise(["a", "b"], SCORES)
    restored = PromptHistory(buffer=8, minimum=3)
    restored.restore(json.loads(json.dumps(history.state())))
    later = torch.tensor([[0.3, 0.1, 0.7], [0.2, 0.2, 0.9]])
    assert torch.equal(history.normalise(["b", "a"], later), restored.normalise(["b", "a"], later))
    assert history.state() == restored.state()


@pytest.mark.parametrize(("buffer", "minimum"), [(8, 9), (8, 0)])
def test_a_minimum_that_the_buffer_cannot_hold_is_refused(buffer, minimum):
    with pytest.raises(ConfigError, match="expected 1 <= minimum <= buffer"):
        PromptHistory(buffer=buffer, minimum=minimum)


def test_prompts_must_be_one_a_row():
    with pytest.raises(TrainingError, match=r"got 1 prompts for scores \(2, 3\)"):
        PromptHistory().normalise(["a"], SCORES)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_missing_score_is_refused_everywhere_with_its_group(bad):
    scores = SCORES.clone()
    scores[1, 2] = bad
    history = PromptHistory()
    for make in (
        lambda: group_relative(scores, **DANCE),
        lambda: batch_relative(scores, epsilon=1e-6),
        lambda: degenerate_groups(scores),
        lambda: history.normalise(["a", "b"], scores),
    ):
        with pytest.raises(TrainingError, match=r"the scores of groups \[1\] are missing or infinite"):
            make()
    assert history.state() == {}


@pytest.mark.parametrize("shape", [(3,), (0, 4), (2, 0)])
def test_scores_that_are_no_groups_are_refused(shape):
    with pytest.raises(TrainingError, match=r"expected \(prompts, images\), neither of them 0"):
        batch_relative(torch.ones(shape), epsilon=1e-6)


def test_a_clipped_advantage_stays_within_the_limit():
    assert clip_advantage(torch.tensor([-7.0, -5.0, 0.3, 9.0]), 5.0).tolist() == pytest.approx([-5.0, -5.0, 0.3, 5.0])


@pytest.mark.parametrize("value", [0.3, -0.7, 22.2, 1e-3, -100.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_scores_that_differ_in_their_last_bit_are_apart_by_rounding(value, dtype):
    value = torch.tensor(value, dtype=dtype)
    following = value + torch.finfo(dtype).eps * 2 ** value.abs().log2().floor()
    scores = torch.stack([value, following, value])[None].double()
    assert scores[0, 0] != scores[0, 1]
    assert advantages.apart_by_rounding(scores, advantages.rounding(scores)).tolist() == [True]
    assert advantages.degenerate_groups(scores) == 0
    far = torch.stack([value, 1.05 * value, value])[None].double()
    assert advantages.apart_by_rounding(far, advantages.rounding(far)).tolist() == [False]


def test_true_differences_and_whole_numbers_are_not_apart_by_rounding():
    for rows in (
        [5.0, 5.0],
        [200.0, 201.0],
        [0.0, 1.0],
        [0.0, 1e-20],
        [30.001, 30.002],
        [-1.0, 1.0],
        [0.25, 0.2500011],
    ):
        scores = torch.tensor([rows], dtype=torch.float64)
        assert not advantages.apart_by_rounding(scores, advantages.rounding(scores)).any(), rows


def test_scores_too_large_to_compare_are_refused():
    with pytest.raises(TrainingError, match=r"scores up to 1e\+200, too large to compare"):
        advantages.batch_relative(torch.tensor([[1e200, 0.0]], dtype=torch.float64), epsilon=0.0)
