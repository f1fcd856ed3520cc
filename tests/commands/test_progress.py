"""What a user sees while a run goes on: a table that is redrawn on a terminal, lines elsewhere."""

import io
import re

import pytest
from rich.console import Console

from pcpo_ray.commands.progress import Display
from tests.support import small

SHOWN = [
    "reward",
    "0.25 ± 0.5",
    "clip fraction",
    "12.5%",
    "samples/s",
    "3.2",
    "seconds left",
    "samplers 37%",
    "learner 60%",
]


def learned(step, seconds):
    return {
        "kind": "train",
        "step": step,
        "seconds": seconds,
        "reward_mean": 0.25,
        "reward_std": 0.5,
        "clip_fraction": 0.125,
        "samples_per_second": 3.2,
        "idle": {"samplers": 0.37, "learner": 0.6},
    }


def evaluated(step):
    return {
        "kind": "evaluation",
        "step": step,
        "images": 4,
        "rewards": {"reward": {"mean": 1}, "aesthetic": {"mean": 5.5}},
    }


@pytest.fixture
def shown():
    """What a display of a run of 6 steps prints on a console that is a terminal, or none."""

    def show(terminal):
        file = io.StringIO()
        console = Console(file=file, force_terminal=terminal, width=120, color_system=None)
        with Display(small.run("model", steps=6), console) as display:
            display.say("starting [in this process]")
            for row in (evaluated(0), learned(1, 8.0), learned(2, 4.0)):
                display.row(row)
        return file.getvalue()

    return show


def test_numbers_that_are_none_are_dashes():
    file = io.StringIO()
    display = Display(small.run("model", steps=6), Console(file=file, width=120))
    none = float("nan")
    display.row({**learned(1, 8.0), "reward_mean": none, "reward_std": none})
    rewards = {"aesthetic": {"mean": none}}
    display.row({**evaluated(0), "rewards": rewards, "quality": {"frechet": none}})
    first, second = file.getvalue().splitlines()
    assert "reward - ± -;" in first and second == "evaluation at step 0: aesthetic -, frechet -"


def test_elsewhere_each_step_and_evaluation_is_one_plain_line(shown):
    lines = shown(terminal=False).splitlines()
    assert lines[:2] == ["starting [in this process]", "evaluation at step 0: aesthetic 5.5"]
    assert len(lines) == 4 and lines[3].startswith("step 2/6: ")
    assert all(words in lines[3] for words in SHOWN)
    assert "seconds left 24" in lines[3]  # 4 steps at the mean of the last ones


def test_on_a_terminal_a_table_is_redrawn_and_leaves_only_lines(shown):
    written = shown(terminal=True)
    words = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written)
    assert all(found in words for found in [*SHOWN, "2/6", "held-out prompts (4 images, step 0)", "aesthetic 5.5"])
    assert "starting [in this process]" in words and "step 2/6: " not in words
    assert "\x1b[?25l" in written  # the cursor is hidden while it is redrawn
    assert written.index("\x1b[?25h") > written.index("\x1b[?25l")  # and shown at the end


def test_names_that_look_like_rich_markup_are_shown_as_they_are():
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=120, color_system=None)
    with Display(small.run("model", steps=6, name="'[bold]run'"), console) as display:
        display.row({**evaluated(0), "rewards": {"[/closed]": {"mean": 1.0}}})
    assert display.whole and "[bold]run" in file.getvalue() and "[/closed] 1" in file.getvalue()


def test_what_cannot_be_shown_is_told_of_once_and_ends_nothing():
    told = []
    display = Display(small.run("model", steps=6), Console(file=io.StringIO(), width=120))
    display.failed = told.append
    for _ in range(2):
        display.row({"kind": "train", "step": 1})
    assert told == ["a line could not be shown: KeyError: 'seconds'"]
