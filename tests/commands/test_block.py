"""The block on a terminal: as many lines at any time and width, with the reward now, at the start, and between."""

import io

import pytest
from rich.console import Console

from pcpo_ray.commands.block import ASCII_MARKS, MARKS, Shown, signed, sparkline


class Clock:
    def __init__(self):
        self.seconds = 100.0

    def __call__(self):
        return self.seconds


def learned(step, reward, seconds=60.0):
    idle = {"samplers": 0.25, "learner": 0.5}
    return {"step": step, "reward_mean": reward, "reward_std": 0.125, "seconds": seconds, "idle": idle}


def evaluated(step, value, **change):
    changes = {"changes": {"reward": change}} if change else {}
    return {"step": step, "rewards": {"reward": {"mean": value}}, "seconds": 120.0, **changes}


def drawn(shown, width=80, encoding="utf-8"):
    class File(io.StringIO):
        @property
        def encoding(self):  # type: ignore[override]
            return encoding

    file = File()
    Console(file=file, force_terminal=True, width=width, color_system=None, legacy_windows=False).print(shown)
    return file.getvalue().splitlines()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def shown(clock):
    return Shown(name="demo", steps=24, every=8, now=clock)


def test_the_block_names_phase_reward_evaluation_and_idle_times(shown, clock):
    for step in range(1, 13):
        shown.learned(learned(step, 0.5 + step / 100))
    shown.evaluated(evaluated(0, 0.5), "reward")
    shown.evaluated(evaluated(8, 0.625, mean=0.125, low=0.1, high=0.15), "reward")
    shown.enter("sampling step 13: 2/6 groups")
    clock.seconds += 7
    bar, phase, reward, held_out, idle = drawn(shown)
    assert bar.startswith("demo ━") and "  12/24  7 s, 16 min left" in bar  # 12 steps and two evaluations
    assert phase == "phase     sampling step 13: 2/6 groups, 7 s"
    assert reward.startswith("reward    0.620 ± 0.12, start 0.510, change +0.11  ▁")
    assert held_out == "held-out  0.6250 at step 8, start 0.5000, change +0.125 (+0.1 to +0.15)"
    assert idle == "idle      samplers 25%, learner 50%"
    shown.in_turn = True
    assert drawn(shown)[-1] == "in turn   samplers 75%, learner 50%"


@pytest.mark.parametrize("width", [20, 40, 80, 120])
def test_the_block_keeps_its_height_and_width_from_the_first_sign_on(shown, width):
    assert len(drawn(shown, width)) == 5
    for step in range(1, 25):
        shown.learned(learned(step, step / 7))
        shown.evaluated(evaluated(step, step / 7, mean=0.1, low=0.1, high=0.1), "reward")
    shown.enter("checking " + "everything " * 20)
    lines = drawn(shown, width)
    assert len(lines) == 5 and max(map(len, lines)) <= width


def test_a_terminal_that_has_ascii_only_gets_ascii_only(shown):
    for step in (1, 2, 3):
        shown.learned(learned(step, step / 7))
    assert all(line.isascii() for line in drawn(shown, encoding="ascii"))
    assert "+/-" in drawn(shown, encoding="ascii")[2]


def test_a_phase_is_new_when_its_words_are_and_not_when_its_count_is(shown, clock):
    assert shown.enter("evaluating step 0: 0/8 images")
    clock.seconds += 20
    assert not shown.enter("evaluating step 0: 3/8 images") and shown.phase_began == 100.0
    assert shown.enter("sampling step 1") and shown.phase_began == 120.0


def test_steps_that_are_taken_again_replace_what_was_shown(shown):
    for step, reward in ((1, 0.1), (2, 0.2), (3, 0.3), (2, 0.25)):
        shown.learned(learned(step, reward))
    assert list(shown.rewards) == [1, 2] and shown.rewards[2][0] == 0.25


@pytest.mark.parametrize("marks", [MARKS, ASCII_MARKS])
def test_a_sparkline_goes_from_the_least_to_the_most_and_fits(marks):
    assert sparkline([0, 1], 10, marks) == marks[0] + marks[-1]
    assert sparkline(range(100), 5, marks)[0] == marks[0] and len(sparkline(range(100), 5, marks)) == 5
    assert sparkline([3.0, 3.0], 10, marks) == 2 * marks[(len(marks) - 1) // 2]
    assert sparkline([float("nan")], 10, marks) == sparkline([1.0], 0, marks) == ""


def test_changes_have_a_sign():
    assert [signed(value) for value in (0.01314, -2.0, float("nan"))] == ["+0.0131", "-2", "-"]
