"""What rewards say they saw in an evaluation's images: a text an image, and a failure costs no score."""

import numpy as np
import pytest
import torch
import yaml

from pcpo_ray import config, rewards
from pcpo_ray.data.types import Prompt, Task
from pcpo_ray.errors import RewardError
from pcpo_ray.words.captions import parse
from pcpo_ray.words.draw import draw
from pcpo_ray.workers import scorer
from tests.support import small

IMAGES = np.stack([np.full((16, 16, 3), 10 * n, np.uint8) for n in range(4)])


def task(purpose="evaluate"):
    first, second = (Prompt(index=n, text=text) for n, text in enumerate(("one", "two")))
    return Task(step=0, position=0, prompt=first, images=2, version=0, purpose=purpose, more=(second,))


def made(*options):
    sees = [{"kind": "tests.support.custom:Sees", "options": one} for one in options]
    run = small.run("model", rewards=yaml.safe_dump([*sees, {"kind": "jpeg_compressibility"}]))
    return scorer.Scorer(run, torch.device("cpu"))


def test_a_text_an_image_in_order_from_those_that_say_so():
    said = made({}).describe(task(), IMAGES)
    assert said == {"Sees": [f"{text}, as bright as {10 * n}.0" for n, text in enumerate(("one", "one", "two", "two"))]}


def test_what_trained_rewards_saw_comes_first():
    watched = [{"kind": "tests.support.custom:Sees", "label": "watched"}]
    trained = [{"kind": "tests.support.custom:Sees", "label": "trained"}]
    run = small.run("model", rewards=yaml.safe_dump(trained), evaluation__rewards=yaml.safe_dump(watched))
    assert list(scorer.Scorer(run, torch.device("cpu")).describe(task(), IMAGES)) == ["trained", "watched"]


def test_training_groups_are_not_described():
    assert made({}).describe(task("train"), IMAGES) == {}


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        ("raise", "TimeoutError: no answer in 3 s"),
        (["a"], "describe returned ['a'] for 4 images; expected a text for each"),
        ([1, 2, 3, 4], "describe returned [1, 2, 3, 4] for 4 images; expected a text for each"),
        (3, "TypeError: 'int' object is not iterable"),
    ],
)
def test_one_that_fails_says_why_under_each_image_and_keeps_its_scores(answer, cause):
    failing = made({"answer": answer})
    (said,) = failing.describe(task(), IMAGES).values()
    assert len(said) == 4 and all(text.startswith("(failed: ") and cause in text for text in said)
    scores, failures, _ = failing.score(task(), IMAGES)
    assert scores["Sees"] == [0, 10, 20, 30] and failures == {}
    with pytest.raises(RewardError, match="asked about two drawn images before the run, and failed"):
        failing.ask(["one", "two"])


def test_a_users_describe_with_other_arguments_is_refused_before_a_run():
    with pytest.raises(RewardError, match="too many positional arguments"):
        rewards.check(config.CustomReward(kind="tests.workers.test_describe:Mute"))


class Mute:
    """A reward whose describe takes no prompts."""

    def score(self, images, prompts):
        return [0.0] * len(images)

    def describe(self, images):
        return [""] * len(images)


@pytest.mark.parametrize(
    "reward",
    [
        config.Ocr(kind="ocr", detect=False, score="exact"),
        config.Ocr(kind="ocr", detect=False, score="ctc"),
        config.DdddOcr(kind="ddddocr"),
    ],
)
def test_readers_say_what_they_read_whatever_was_asked_for(reward):
    words = ("moon", "fish", "cave")
    images = np.stack([draw(parse(f'the word "{word}"'), n) for n, word in enumerate(words)])
    made = rewards.load(reward, torch.device("cpu"))
    assert [text.strip() for text in made.describe(images, ['the word "sun"'] * 3)] == list(words)
