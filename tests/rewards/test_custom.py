"""A reward of the user's own is found, checked without being built, and named when anything about it fails."""

import sys

import numpy as np
import pytest
import torch

from pcpo_ray import config, rewards
from pcpo_ray.errors import RewardError

IMAGES = np.zeros((2, 4, 4, 3), np.uint8)
MODULES = {
    "typo": "class Reward:\n    def score(self, images, prompts):\n        return images prompts\n",
    "crash": "raise ZeroDivisionError('while imported')\n",
    "lacks": "import no_such_library\n",
    "quits": "import sys\nsys.exit(2)\n",
    "mine": """
class Plain:
    def score(self, images, prompts):
        return [float(len(prompt)) for prompt in prompts]

class Greedy:
    def score(self, images, prompts, captions):
        return [0.0] * len(images)

class Fixed:
    score = 3

class Both(Plain):
    def score_group(self, images, prompt):
        return [0.0] * len(images)

class Grouped:
    def score_group(self, images, prompts, captions):
        return [0.0] * len(images)

class Compares:
    def score_group(self, images, prompt):
        return [0.0] * len(images)

class Unready:
    def __init__(self, path="weights.pt"):
        raise FileNotFoundError(path)
    def score(self, images, prompts):
        return [0.0] * len(images)

class Quits:
    def __init__(self):
        raise SystemExit("no licence")
    def score(self, images, prompts):
        return [0.0] * len(images)

def function(images, prompts):
    return [0.0] * len(images)

made = Plain()
""",
}


@pytest.fixture(autouse=True)
def working_folder(tmp_path, monkeypatch):
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in MODULES:
        sys.modules.pop(name, None)


def custom(kind, **options):
    return config.CustomReward(kind=kind, options=options)


def test_any_class_with_the_method_will_do_without_inheriting_anything():
    reward = custom("mine:Plain")
    rewards.check(reward)
    made = rewards.load(reward, torch.device("cpu"))
    assert isinstance(made, rewards.Reward)
    assert made.score(IMAGES, ["a", "bcd"]) == [1.0, 3.0]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("typo:Reward", "SyntaxError: invalid syntax"),
        ("crash:Reward", "ZeroDivisionError: while imported"),
        ("lacks:Reward", "no_such_library"),
        ("quits:Reward", r"SystemExit: 2, which would end the whole process \(.*quits\.py, line 2\)"),
        ("mine:Absent", "no attribute 'Absent'"),
        ("mine:", "is no reward"),
        ("mine:Plain:score", "invalid format"),
        ("mine:function", r"is no reward: expected a class with a method score\(self, images, prompts\)"),
        ("mine:made", "is no reward: expected a class"),
        ("mine:Fixed", "is no reward: expected a class"),
        ("mine:Greedy", "'captions'; expected a class with a method score"),
        ("mine:Grouped", r"'captions'; expected .* or score_group\(self, images, prompt\)"),
        ("mine:Both", "has both score and score_group; keep one of them"),
    ],
)
def test_what_is_no_reward_is_refused_with_its_name_and_the_reason(kind, words):
    for refuse in (rewards.check, lambda reward: rewards.load(reward, torch.device("cpu"))):
        with pytest.raises(RewardError, match=rf"reward '{kind}'.*{words}"):
            refuse(custom(kind))


def test_a_reward_that_compares_images_is_refused_for_groups_of_one(small_sd):
    from pcpo_ray.commands import session
    from tests.support import small

    reward = custom("mine:Compares")
    assert isinstance(rewards.load(reward, torch.device("cpu")), rewards.GroupReward)
    run = small.run(small_sd, rewards="[{kind: 'mine:Compares'}]", evaluation__images=1)
    with pytest.raises(RewardError, match=r"evaluation\.images is 1, and Compares compares a prompt's images"):
        session.check_groups(run)


def test_unknown_options_are_refused_before_the_class_is_built():
    with pytest.raises(RewardError, match=r"reward 'mine:Unready' with its options: .*'folder'"):
        rewards.check(custom("mine:Unready", folder="x"))


def test_a_class_that_cannot_be_built_is_named_with_options_and_cause():
    rewards.check(custom("mine:Unready", path="x.pt"))
    with pytest.raises(RewardError, match=r"'mine:Unready' .* options \{'path': 'x.pt'\}: FileNotFoundError: x.pt"):
        rewards.load(custom("mine:Unready", path="x.pt"), torch.device("cpu"))


def test_a_class_that_exits_while_being_built_is_named_with_the_line():
    rewards.check(custom("mine:Quits"))
    with pytest.raises(RewardError, match=r"(?s)'mine:Quits' .*SystemExit: no licence, .*mine\.py, line \d+\)"):
        rewards.load(custom("mine:Quits"), torch.device("cpu"))


def test_after_a_reward_that_ended_the_process_the_mended_command_starts(small_sd, command, tmp_path):
    from pcpo_ray.config import files
    from tests.support import small

    (tmp_path / "sd.yaml").write_text(files.dump(small.run(small_sd, steps=1)))
    asked = ("train", "sd.yaml", "--local", "rewards=[{kind: 'mine:Quits'}]")
    status, _, told = command(*asked)
    assert status == 1 and "SystemExit: no licence" in told and "mine.py, line" in told
    text = MODULES["mine"].replace('raise SystemExit("no licence")', "pass")
    (tmp_path / "mine.py").write_text(text)
    sys.modules.pop("mine")
    assert command(*asked)[0] == 0
