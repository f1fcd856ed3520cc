"""A score that cannot be given is missing, with its cause; it is never 0."""

import math
import re

import numpy as np
import pytest
import torch
import yaml

from pcpo_ray import scorer
from pcpo_ray.trajectory import Prompt, Task
from tests import small

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)


class Says:
    """A reward that answers what it was built with, or raises it."""

    def __init__(self, answer) -> None:
        self.answer = answer

    def score(self, images, prompts):
        if self.answer == "raise":
            raise TimeoutError("no answer in 3 s")
        return torch.tensor(self.answer) if self.answer == [1, 2, 3, 4] else self.answer


def task(purpose="train"):
    return Task(step=1, position=0, prompt=Prompt(index=0, text="x"), images=4, version=0, purpose=purpose)


def scored(small_sd, answer, purpose="train"):
    says = {"kind": "tests.test_scorer:Says", "options": {"answer": answer}}
    rewards = yaml.safe_dump([says, {"kind": "jpeg_compressibility"}])
    return scorer.Scorer(small.run(small_sd, rewards=rewards), torch.device("cpu")).score(task(purpose), IMAGES)[:2]


def test_scores_keep_the_images_order_and_nothing_is_missing(small_sd):
    scores, failures = scored(small_sd, [1, 2, 3, 4])
    assert scores["Says"] == [1.0, 2.0, 3.0, 4.0]
    assert all(value < 0 for value in scores["jpeg_compressibility"])
    assert failures == {}


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        ("raise", "TimeoutError: no answer in 3 s"),
        ([1.0, 2.0, 3.0], r"shape \(3,\) for 4 images"),
        ([[1.0]] * 4, r"shape \(4, 1\)"),
        (0.5, r"shape \(\)"),
        (["good"] * 4, "good"),
        (None, "None|shape"),
    ],
)
def test_a_reward_that_fails_is_missing_whole_and_takes_no_other_with_it(small_sd, answer, cause):
    scores, failures = scored(small_sd, answer)
    assert len(scores["Says"]) == 4
    assert all(math.isnan(value) for value in scores["Says"])
    assert list(failures) == ["Says"]
    assert re.search(cause, failures["Says"])
    assert np.isfinite(scores["jpeg_compressibility"]).all()


class Picky:
    """A reward that cannot score one of the texts."""

    def score(self, images, prompts):
        if "bad" in prompts:
            raise ValueError("no idea what bad is")
        return [float(len(prompt)) for prompt in prompts]


def test_a_prompt_that_cannot_be_scored_costs_none_of_those_beside_it_theirs(small_sd):
    run = small.run(small_sd, evaluation__rewards="[{kind: 'tests.test_scorer:Picky'}]")
    prompts = [Prompt(index=n, text=text) for n, text in enumerate(["one", "bad", "three"])]
    together = Task(
        step=0, position=0, prompt=prompts[0], images=2, version=0, purpose="evaluate", more=tuple(prompts[1:])
    )
    images = np.concatenate([IMAGES, IMAGES[:2]])
    scores, failures, _ = scorer.Scorer(run, torch.device("cpu")).score(together, images)
    np.testing.assert_array_equal(scores["Picky"], [3, 3, math.nan, math.nan, 5, 5])
    assert failures == {"Picky": "ValueError: no idea what bad is"}
    assert np.isfinite(scores["jpeg_compressibility"]).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_is_missing_with_its_cause_and_its_siblings_stay(small_sd, bad):
    scores, failures = scored(small_sd, [1.0, bad, 0.0, 2.0])
    assert math.isnan(scores["Says"][1])
    assert [scores["Says"][n] for n in (0, 2, 3)] == [1.0, 0.0, 2.0]
    assert str(bad) in failures["Says"]


def test_rewards_that_only_watch_score_evaluations_alone(small_sd):
    run = small.run(small_sd, evaluation__rewards="[{kind: jpeg_incompressibility}, {kind: jpeg_compressibility}]")
    stage = scorer.Scorer(run, torch.device("cpu"))
    assert list(stage.score(task("train"), IMAGES)[0]) == ["jpeg_compressibility"]
    watched = stage.score(task("evaluate"), IMAGES)[0]
    assert watched["jpeg_incompressibility"] == [-value for value in watched["jpeg_compressibility"]]
