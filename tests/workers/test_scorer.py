"""A score that cannot be given is missing, with its cause; it is never 0. What a reward does, no other notices."""

import math
import os
import re
import sys
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
import yaml

from pcpo_ray.data.types import Prompt, Task
from pcpo_ray.errors import RewardError
from pcpo_ray.workers import scorer
from tests.support import small

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)


class Apart:
    """The distance of each image's mean from its group's; it fails for a group of which one image is black."""

    def score_group(self, images, prompt):
        means = images.mean(axis=(1, 2, 3))
        assert means.all(), f"a black image for {prompt}"
        return list(abs(means - means.mean()))


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
    says = {"kind": "tests.workers.test_scorer:Says", "options": {"answer": answer}}
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


class Exits:
    """A reward that ends its process when it is built."""

    def __init__(self):
        sys.exit("no licence")

    def score(self, images, prompts):
        return [0.0] * len(images)


class Picky:
    """A reward that cannot score one of the texts."""

    def score(self, images, prompts):
        if "bad" in prompts:
            raise ValueError("no idea what bad is")
        return [float(len(prompt)) for prompt in prompts]


def test_a_prompt_that_fails_leaves_the_scores_of_other_prompts(small_sd):
    run = small.run(small_sd, evaluation__rewards="[{kind: 'tests.workers.test_scorer:Picky'}]")
    prompts = [Prompt(index=n, text=text) for n, text in enumerate(["one", "bad", "three"])]
    together = Task(
        step=0, position=0, prompt=prompts[0], images=2, version=0, purpose="evaluate", more=tuple(prompts[1:])
    )
    images = np.concatenate([IMAGES, IMAGES[:2]])
    scores, failures, _ = scorer.Scorer(run, torch.device("cpu")).score(together, images)
    np.testing.assert_array_equal(scores["Picky"], [3, 3, math.nan, math.nan, 5, 5])
    line = Picky.score.__code__.co_firstlineno + 2
    assert failures == {"Picky": f"ValueError: no idea what bad is ({__file__}, line {line})"}
    assert np.isfinite(scores["jpeg_compressibility"]).all()


def test_a_group_reward_gets_one_group_of_several_prompts_at_a_time(small_sd):
    run = small.run(small_sd, evaluation__rewards="[{kind: 'tests.workers.test_scorer:Apart'}]")
    prompts = [Prompt(index=n, text=text) for n, text in enumerate(["one", "black", "three"])]
    together = Task(
        step=0, position=0, prompt=prompts[0], images=2, version=0, purpose="evaluate", more=tuple(prompts[1:])
    )
    levels = [10, 14, 0, 90, 50, 70]
    images = np.stack([np.full((16, 16, 3), level, np.uint8) for level in levels])
    scores, failures, _ = scorer.Scorer(run, torch.device("cpu")).score(together, images)
    np.testing.assert_array_equal(scores["Apart"], [2, 2, math.nan, math.nan, 10, 10])
    assert list(failures) == ["Apart"] and "a black image for black" in failures["Apart"]


def test_a_group_reward_is_trained_on_whole_groups(small_sd):
    run = small.run(small_sd, rewards="[{kind: 'tests.workers.test_scorer:Apart'}]")
    scores, failures, _ = scorer.Scorer(run, torch.device("cpu")).score(task(), IMAGES)
    means = IMAGES.mean(axis=(1, 2, 3))
    assert scores["Apart"] == pytest.approx(list(abs(means - means.mean()))) and failures == {}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_non_finite_score_is_missing_with_its_cause_and_others_stay(small_sd, bad):
    scores, failures = scored(small_sd, [1.0, bad, 0.0, 2.0])
    assert math.isnan(scores["Says"][1])
    assert [scores["Says"][n] for n in (0, 2, 3)] == [1.0, 0.0, 2.0]
    assert str(bad) in failures["Says"]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            "raise",
            r"Says was asked .* TimeoutError: no answer in 3 s \(.*test_scorer\.py, line \d+\); fix it",
        ),
        ([1, 2, 3, 4], r"scores of shape \(4,\) for 2 images"),
        ([1.0], r"scores of shape \(1,\) for 2 images"),
    ],
)
def test_a_reward_of_ones_own_is_asked_before_a_run_and_named(small_sd, answer, words):
    says = {"kind": "tests.workers.test_scorer:Says", "options": {"answer": answer}}
    stage = scorer.Scorer(small.run(small_sd, evaluation__rewards=yaml.safe_dump([says])), torch.device("cpu"))
    with pytest.raises(RewardError, match=words):
        stage.ask(["x", "y"])


@pytest.mark.parametrize("kind", ["Says", "Apart"])
def test_a_reward_that_answers_when_it_is_asked_is_left_alone(small_sd, kind):
    options = {"answer": [math.nan, None]} if kind == "Says" else {}  # a score may be missing
    rewards = yaml.safe_dump([{"kind": f"tests.workers.test_scorer:{kind}", "options": options}])
    scorer.Scorer(small.run(small_sd, rewards=rewards), torch.device("cpu")).ask(["x"])


def test_prompts_that_an_oracle_does_not_read_are_no_failure(small_sd):
    run = small.run(small_sd, rewards="[{kind: shapes_oracle}]")
    one = Task(step=1, position=0, prompt=Prompt(index=0, text="a cat"), images=4, version=0, purpose="evaluate")
    scores, failures, _ = scorer.Scorer(run, torch.device("cpu")).score(one, IMAGES)
    assert all(map(math.isnan, scores["shapes_oracle"])) and failures == {}


def test_rewards_that_only_watch_score_evaluations_alone(small_sd):
    run = small.run(small_sd, evaluation__rewards="[{kind: jpeg_incompressibility}, {kind: jpeg_compressibility}]")
    stage = scorer.Scorer(run, torch.device("cpu"))
    assert list(stage.score(task("train"), IMAGES)[0]) == ["jpeg_compressibility"]
    watched = stage.score(task("evaluate"), IMAGES)[0]
    assert watched["jpeg_incompressibility"] == [-value for value in watched["jpeg_compressibility"]]


ONE_TO_FOUR = {
    "bfloat16": lambda: torch.tensor([1.0, 2, 3, 4], dtype=torch.bfloat16),
    "float16": lambda: torch.tensor([1.0, 2, 3, 4], dtype=torch.float16),
    "with a gradient": lambda: torch.tensor([1.0, 2, 3, 4], requires_grad=True) * 1,
    "a view": lambda: torch.arange(2, 10)[::2] / 2,
    "integers": lambda: torch.arange(1, 5),
    "bytes": lambda: np.arange(1, 5, dtype=np.uint8),
    "halves": lambda: np.arange(1, 5).astype(np.float16),
    "objects": lambda: np.array([1, Decimal(2), Fraction(3), 4.0], dtype=object),
    "tensors": lambda: [torch.tensor(float(n), dtype=torch.bfloat16, requires_grad=True) for n in range(1, 5)],
    "numpy's numbers": lambda: [np.float32(1), np.int64(2), np.float16(3), np.array(4)],
    "a tuple": lambda: (1, 2, Decimal("3"), Fraction(4)),
    "a generator": lambda: (float(n) for n in range(1, 5)),
    "a mapping's values": lambda: {n: float(n) for n in range(1, 5)}.values(),
}


ANSWERS = dict(ONE_TO_FOUR)


class Gives:
    """A reward that gives what the test says, by its name."""

    def __init__(self, what):
        self.what = what

    def score(self, images, prompts):
        return ANSWERS[self.what]()


def given(what):
    run = small.run(
        "model", rewards=yaml.safe_dump([{"kind": "tests.workers.test_scorer:Gives", "options": {"what": what}}])
    )
    scores, failures, _ = scorer.Scorer(run, torch.device("cpu")).score(task(), IMAGES)
    return scores["Gives"], failures.get("Gives", "")


@pytest.mark.parametrize("what", ONE_TO_FOUR)
def test_numbers_of_any_type_are_scores(what):
    assert given(what) == ([1.0, 2.0, 3.0, 4.0], "")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpus_tensors_are_scores(monkeypatch):
    monkeypatch.setitem(ANSWERS, "gpu", lambda: torch.tensor([1.0, 2, 3, 4], device="cuda", dtype=torch.bfloat16))
    assert given("gpu") == ([1.0, 2.0, 3.0, 4.0], "")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda: torch.ones(4, 1), r"a Tensor with scores of shape \(4, 1\) for 4 images; expected \(4,\)"),
        (lambda: [torch.ones(1)] * 4, r"a list with scores of shape \(4, 1\)"),
        (lambda: torch.ones(4, dtype=torch.complex64), "complex"),
        (lambda: ["1.0", "2.0", "3.0", "4.0"], r"got the text '1\.0' as a score"),
        (lambda: np.array(["1", "2", "3", "4"]), r"got the text '1' as a score"),
        (lambda: {0: 1.0, 1: 2.0, 2: 3.0, 3: 4.0}, "got a dict"),
        (lambda: {1.0, 2.0, 3.0, 4.0}, "got a set"),
        (lambda: "1234", "got a str"),
        (lambda: b"1234", "got a bytes"),
        (lambda: [1.0, [2.0], 3.0, 4.0], "list"),
        (lambda: [1.0, 2.0, 3.0, 10**400], "OverflowError"),
        (lambda: sys.exit(2), r"SystemExit: 2, which would end the whole process \(.*test_scorer\.py, line \d+\)"),
    ],
)
def test_what_is_no_number_an_image_is_refused_with_what_it_was(answer, words, monkeypatch):
    monkeypatch.setitem(ANSWERS, "odd", answer)
    scores, cause = given("odd")
    assert np.isnan(scores).all() and re.search(words, cause)


@pytest.mark.parametrize("answer", [[1.0, None, 3.0, 4.0], np.ma.masked_array([1.0, 2.0, 3.0, 4.0], [0, 1, 0, 0])])
def test_none_and_what_is_masked_are_missing_and_their_siblings_stay(answer, monkeypatch):
    monkeypatch.setitem(ANSWERS, "some", lambda: answer)
    scores, cause = given("some")
    np.testing.assert_array_equal(scores, [1.0, math.nan, 3.0, 4.0])
    assert "nan" in cause


class Meddles:
    """A reward that changes what it was given, in the way it was built with."""

    def __init__(self, how):
        self.how = how

    def score(self, images, prompts):
        if self.how == "in place":
            images //= 2
        elif self.how == "made writeable":
            images.flags.writeable = True
            images[:] = 0
        elif self.how == "through torch":
            torch.from_numpy(images).zero_()
        elif self.how == "prompts":
            prompts[:] = ["nothing"] * len(prompts)
        else:
            prompts.clear()
        return [0.0] * len(images)


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("how", ["in place", "made writeable", "through torch", "prompts", "prompts gone"])
def test_a_reward_that_modifies_its_images_affects_no_other_reward(how):
    meddles = {"kind": "tests.workers.test_scorer:Meddles", "options": {"how": how}}
    others = [{"kind": "jpeg_compressibility"}, {"kind": "tests.workers.test_scorer:Picky"}]
    images = IMAGES.copy()
    alone, first = (
        scorer.Scorer(small.run("model", rewards=yaml.safe_dump(some)), torch.device("cpu")).score(task(), images)
        for some in (others, [meddles, *others])
    )
    np.testing.assert_array_equal(images, IMAGES)
    assert images.flags.writeable
    assert {name: first[0][name] for name in alone[0]} == alone[0]
    assert (how == "in place") == ("Meddles" in first[1])
    assert "read-only" in first[1].get("Meddles", "read-only")


class Restless:
    """A reward that changes the process, when it is built and at each score, and draws random numbers."""

    def __init__(self, folder):
        self.folder = folder
        self.disturb()

    def disturb(self):
        os.chdir(self.folder)
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        torch.set_num_threads(3)

    def score(self, images, prompts):
        assert os.getcwd() == self.folder and torch.ones(1).dtype == torch.float64
        self.disturb()
        return torch.rand(len(images))


def test_a_scorer_seeds_by_group_and_restores_the_random_state(tmp_path):
    restless = {"kind": "tests.workers.test_scorer:Restless", "options": {"folder": str(tmp_path)}}
    run = small.run("model", rewards=yaml.safe_dump([restless]))

    def state():
        return os.getcwd(), torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads(), torch.rand(1)

    torch.manual_seed(0)
    before = state()
    torch.manual_seed(0)
    stage = scorer.Scorer(run, torch.device("cpu"))
    first, other = (stage.score(one, IMAGES)[0] for one in (task(), task("evaluate")))
    again = scorer.Scorer(run, torch.device("cpu")).score(task(), IMAGES)[0]
    assert state() == before
    assert first == again != other
