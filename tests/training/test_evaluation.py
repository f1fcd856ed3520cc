"""Intervals that mean what they say."""

import dataclasses

import numpy as np
import pytest

from pcpo_ray import config
from pcpo_ray.data.prompts import PromptSource, normalised
from pcpo_ray.data.tasks import evaluation_tasks, watched_training_tasks
from pcpo_ray.data.types import Handle, Prompt, Rollout, Scored, Task
from pcpo_ray.runs import intervals
from pcpo_ray.training import evaluation
from tests.support import small


def test_the_interval_covers_the_truth_about_as_often_as_it_claims():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(100):
        prompts = rng.normal(1.0, 1.0, (30, 1))  # prompts differ more than images of one prompt do
        found = intervals.estimate(prompts + rng.normal(0, 0.1, (30, 4)))
        hits += found.low <= 1.0 <= found.high
    assert 85 <= hits <= 99


def test_images_of_one_prompt_do_not_narrow_it():
    values = np.random.default_rng(0).normal(size=(20, 1))
    few, many = intervals.estimate(values), intervals.estimate(np.repeat(values, 50, axis=1))
    assert (few.low, few.high) == pytest.approx((many.low, many.high))


def test_pairs_are_compared_image_by_image():
    before = np.random.default_rng(0).normal(0, 10, (16, 2))
    gained = intervals.paired(before, before + 0.5)
    assert gained.mean == pytest.approx(0.5)
    assert gained.low == pytest.approx(0.5, abs=1e-9)


def test_missing_scores_are_left_out_and_all_missing_is_not_a_number():
    values = np.array([[1.0, np.nan], [3.0, 3.0], [np.nan, np.nan]])
    assert intervals.estimate(values).mean == 2.0
    assert np.isnan(intervals.estimate(np.full((2, 2), np.nan)).mean)


def scored(position, **scores):
    prompt = Prompt(index=position, text="x")
    task = Task(step=0, position=position, prompt=prompt, images=2, version=0, purpose="evaluate")
    rollout = Rollout(
        task=task, trajectory=None, images=Handle(reference=None), bytes=0, checksum="", seconds=0.0, worker="w"
    )
    return Scored(rollout=rollout, scores=scores, failures={}, seconds=0.0)


def test_every_evaluation_asks_for_the_same_groups_at_another_version():
    run = small.run("model", evaluation__count=3, evaluation__images=5)
    held_out = PromptSource([f"prompt {n}" for n in range(9)], seed=0, origin="test")
    first, last = evaluation_tasks(run, held_out, 0), evaluation_tasks(run, held_out, 4)
    assert [dataclasses.replace(task, version=4) for task in first] == last
    assert [(task.step, task.position, task.images, task.purpose) for task in first] == [
        (0, n, 5, "evaluate") for n in range(3)
    ]


def test_a_task_has_as_many_prompts_as_a_group_to_train_on_has_room_for_():
    run = small.run("model", rollout__images=6, evaluation__count=9, evaluation__images=2)
    held_out = PromptSource([f"prompt {n}" for n in range(9)], seed=0, origin="test")
    tasks = evaluation_tasks(run, held_out, 0)
    assert [(task.position, len(task.prompts)) for task in tasks] == [(0, 3), (3, 3), (6, 3)]
    drawn = held_out.batch(1, 9)
    assert [prompt for task in tasks for prompt in task.prompts] == drawn


def test_a_repeated_text_is_evaluated_once_whatever_its_case_and_spaces():
    twice = PromptSource(["a cat", "b", "A  cat", "b", "caf\u00e9", "cafe\u0301"], seed=0, origin="test")
    run = small.run("model", evaluation__count=6, evaluation__train_count=6)
    for tasks in (evaluation_tasks(run, twice, 0), watched_training_tasks(run, twice, 0)):
        texts = [prompt.text for task in tasks for prompt in task.prompts]
        assert sorted(normalised(text) for text in texts) == ["a cat", "b", "caf\u00e9"]
        assert all(twice.texts[prompt.index] == prompt.text for task in tasks for prompt in task.prompts)


def test_what_was_sampled_together_is_told_apart_prompt_by_prompt():
    first, *more = (Prompt(index=n, text=f"prompt {n}") for n in range(3))
    task = Task(
        step=0, position=4, prompt=first, images=2, version=7, purpose="evaluate", averaged=True, more=tuple(more)
    )
    images = Handle(reference=np.arange(6))
    rollout = Rollout(task=task, trajectory=None, images=images, bytes=9, checksum="c", seconds=1.0, worker="w")
    measured = {"features": np.arange(12).reshape(6, 2), "size": np.array([8, 8]), "lpips": np.arange(6)}
    whole = Scored(rollout=rollout, scores={"r": [0, 1, 2, 3, 4, np.nan]}, failures={}, seconds=1.0, measured=measured)
    parts = evaluation.by_prompt([whole])
    assert [part.rollout.task.position for part in parts] == [4, 5, 6]
    assert [part.rollout.task.prompts for part in parts] == [(prompt,) for prompt in (first, *more)]
    assert all(part.rollout.task.weights == (7, True) for part in parts)
    assert [list(part.scores["r"]) for part in parts[:2]] == [[0, 1], [2, 3]]
    assert [part.missing for part in parts] == [False, False, True]
    assert [part.rollout.images.rows for part in parts] == [slice(0, 2), slice(2, 4), slice(4, 6)]
    assert parts[1].measured["features"].tolist() == [[4, 5], [6, 7]] and parts[1].measured["lpips"].tolist() == [2, 3]
    assert parts[1].measured["size"].tolist() == [8, 8]


def test_a_small_source_is_evaluated_whole_and_no_prompt_twice():
    tasks = evaluation_tasks(small.run("model"), PromptSource(["a"], seed=0, origin="test"), 0)
    assert [task.prompt.text for task in tasks] == ["a"]


def test_the_table_has_a_row_a_prompt_a_total_and_gaps_for_missing_scores():
    run = small.run("model", rewards="[{kind: jpeg_compressibility, weight: 2}, {kind: shapes_oracle, weight: -1}]")
    groups = [
        scored(0, watched=[9.0, np.nan], jpeg_compressibility=[1.0, 2.0], shapes_oracle=[0.5, 1.0]),
        scored(1, jpeg_compressibility=[3.0, 4.0], shapes_oracle=[np.nan, 0.0], watched=[7.0, 6.0]),
    ]
    found = evaluation.table(run, groups)  # what is trained on comes first
    assert list(found) == [config.TOTAL, "jpeg_compressibility", "shapes_oracle", "watched"]
    np.testing.assert_array_equal(found[config.TOTAL], [[1.5, 3.0], [np.nan, 8.0]])
    np.testing.assert_array_equal(found["watched"], [[9.0, np.nan], [7.0, 6.0]])
    counts = {config.TOTAL: 3, "jpeg_compressibility": 4, "shapes_oracle": 3, "watched": 3}
    assert evaluation.evaluation_summary(run, groups, [], None)["scored"] == counts
    whole = scored(0, jpeg_compressibility=[1.0, 2.0], shapes_oracle=[0.5, 1.0], watched=[9.0, 7.0])
    assert "scored" not in evaluation.evaluation_summary(run, [whole], [], None)


def test_a_pair_of_which_one_score_is_missing_is_left_out():
    before = np.tile([[0.0, 5.0], [1.0, np.nan], [2.0, 2.0]], (2, 1))
    after = np.tile([[1.0, np.nan], [2.0, 9.0], [3.0, 3.0]], (2, 1))
    assert intervals.paired(before, after) == intervals.Estimate(mean=1.0, low=1.0, high=1.0)


def test_pairing_removes_what_prompts_differ_in():
    rng = np.random.default_rng(0)
    before = rng.normal(0, 10, (40, 1)) + rng.normal(0, 1, (40, 4))
    gained = intervals.paired(before, before + rng.normal(0.3, 0.2, (40, 4)))
    apart = intervals.estimate(before)
    assert 0 < gained.low < 0.3 < gained.high
    assert gained.high - gained.low < (apart.high - apart.low) / 10


@pytest.mark.parametrize("count", range(1, config.FEWEST))
def test_few_prompts_have_a_mean_and_no_interval_however_many_their_images(count):
    found = intervals.estimate(np.full((count, 50), 2.0))
    assert found.mean == 2.0 and not found.bounded
    assert found.row() == {"mean": 2.0, "low": None, "high": None}
    assert not intervals.Estimate.of(found.row()).bounded
    fallen = intervals.change(np.ones((count, 50)), np.zeros((count, 50)))
    assert (fallen["low"], fallen["high"]) == (None, None)


def test_prompts_without_a_score_do_not_count_for_an_interval():
    values = np.random.default_rng(0).normal(size=(config.FEWEST, 2))
    assert intervals.estimate(values).bounded
    values[0] = np.nan
    assert not intervals.estimate(values).bounded


def test_the_fewest_prompts_exclude_no_change_by_chance_in_one_of_20_cases():
    """Of the differences' signs alone: all the same, in either direction."""
    assert 2 * 0.5**config.FEWEST < 0.05 < 2 * 0.5 ** (config.FEWEST - 1)


def test_the_same_values_give_the_same_interval():
    values = np.random.default_rng(0).normal(size=(10, 2))
    assert intervals.estimate(values) == intervals.estimate(values.copy())


def test_a_change_is_told_in_deviations_of_all_its_scores_too():
    before = np.random.default_rng(0).normal(0, 1, (400, 2))
    found = intervals.change(before, before - 1.0)
    assert (found["mean"], found["low"], found["high"]) == pytest.approx((-1, -1, -1))
    assert found["deviations"] == pytest.approx(-1 / np.sqrt(1 + 0.25), rel=0.05)  # half of them are 1 lower
    assert intervals.change(np.ones((3, 2)), np.zeros((3, 2)))["deviations"] == -2
    assert intervals.change(np.ones((3, 2)), np.ones((3, 2)))["deviations"] == 0
    with_gap = np.array([[0.0, np.nan], [1.0, 2.0]])
    assert np.isfinite(intervals.change(with_gap, with_gap + 1)["deviations"])
    assert set(intervals.change(with_gap, np.full((2, 2), np.nan)).values()) == {None}


def test_training_prompts_are_groups_of_their_own_at_fixed_noise():
    run = small.run("model", evaluation__count=3, evaluation__train_count=2)
    source = PromptSource([f"prompt {n}" for n in range(9)], seed=0, origin="test")
    first, last = watched_training_tasks(run, source, 0), watched_training_tasks(run, source, 4)
    assert [dataclasses.replace(task, version=4) for task in first] == last
    assert [(task.position, len(task.prompts)) for task in first] == [(3, 2)]
    assert not set(first) & set(evaluation_tasks(run, source, 0))
    assert watched_training_tasks(small.run("model"), source, 0) == []
