"""What a user sees while a run goes on: a block that is redrawn on a terminal, stamped lines elsewhere."""

import io
import json
import re

import pytest
from rich.console import Console

from pcpo_ray.commands import progress
from pcpo_ray.commands.progress import Display, phase_text
from tests.support import small

STEP = ["reward 0.25 ± 0.5 (+0.05 since step 1)", "clip fraction 12.5%", "3.2 images/s", "24 s left", "samplers 37%"]


def learned(step, seconds, reward=0.25):
    return {
        "kind": "train",
        "step": step,
        "seconds": seconds,
        "reward_mean": reward,
        "reward_std": 0.5,
        "clip_fraction": 0.125,
        "samples_per_second": 3.2,
        "idle": {"samplers": 0.37, "learner": 0.6},
    }


def evaluated(step, **changes):
    return {
        "kind": "evaluation",
        "step": step,
        "images": 4,
        "prompts": 2,
        "seconds": 0.0,
        "rewards": {"reward": {"mean": 1}, "aesthetic": {"mean": 5.5}, "jpeg_compressibility": {"mean": 1}},
        **({"changes": changes} if changes else {}),
    }


@pytest.fixture
def shown():
    """What a display of a run of 6 steps prints on a console that is a terminal, or none."""

    def show(terminal, **options):
        file = io.StringIO()
        console = Console(file=file, force_terminal=terminal, width=120, color_system=None)
        with Display(small.run("model", steps=6), console, **options) as display:
            display.phase("loading the model")
            display.say("fault: sampler-1 is gone [in this process]")
            display.watch("evaluate", 0, 3, 8)
            for row in (evaluated(0), learned(1, 8.0, 0.2), learned(2, 4.0)):
                display.row(row)
        display.say("next: look", "info")
        return file.getvalue()

    return show


def plain(written):
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written)


def test_numbers_that_are_none_are_dashes():
    file = io.StringIO()
    display = Display(small.run("model", steps=6), Console(file=file, width=120))
    none = float("nan")
    display.row({**learned(1, 8.0), "reward_mean": none, "reward_std": none, "clip_fraction": None})
    rewards = {"aesthetic": {"mean": none}}
    display.row({**evaluated(0), "rewards": rewards, "quality": {"frechet": none}})
    first, second, _ = file.getvalue().splitlines()
    assert "reward - ± -; clip fraction -;" in first
    assert second.endswith("evaluation at step 0: not trained on: aesthetic -, frechet -")


def test_elsewhere_each_line_has_its_time_and_level(shown):
    lines = shown(terminal=False).splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (INFO   |WARNING) \S", line) for line in lines)
    said = [line[28:] for line in lines]
    assert said[:2] == ["loading the model", "fault: sampler-1 is gone [in this process]"] and " WARNING " in lines[1]
    assert said[2] == "evaluation at step 0: jpeg_compressibility 1; not trained on: aesthetic 5.5"
    assert said[3] == "the report says what each of these measures; pcpo-ray report small writes it now"  # once
    assert said[5].startswith("step 2/6: ") and all(words in said[5] for words in STEP)
    assert said[6:] == ["next: look"]


def test_a_run_in_another_folder_is_named_so_that_report_finds_it(shown):
    assert "; pcpo-ray report '/shared/my runs/small' writes it now" in shown(terminal=False, runs="/shared/my runs/")
    stored = shown(terminal=False, runs="s3://bucket/runs?region=x")
    assert "; pcpo-ray report 's3://bucket/runs/small?region=x' writes it now" in stored


def test_an_evaluation_says_what_has_changed_and_how_sure_that_is():
    file = io.StringIO()
    display = Display(small.run("model", steps=6), Console(file=file, width=120))
    change = {"mean": 0.5, "low": 0.25, "high": 0.75}
    display.row(evaluated(4, jpeg_compressibility=change, aesthetic={"mean": -1.0, "low": None, "high": None}))
    display.row({**evaluated(5), "scored": {"reward": 3, "aesthetic": 0, "jpeg_compressibility": 3}})
    images = 2 * display.run.evaluation.images
    said = [line[28:] for line in file.getvalue().splitlines()]
    first, more = "jpeg_compressibility 1 (+0.5, +0.25 to +0.75 since step 0)", "not trained on: aesthetic 5.5"
    assert said[0] == f"evaluation at step 4: {first}; {more} (-1)"
    of = f"of {images} images"
    assert said[2] == f"evaluation at step 5: jpeg_compressibility 1 (of 3 {of}); {more} (of 0 {of})"


def test_prose_on_a_terminal_breaks_between_words_and_a_command_does_not():
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=40, color_system=None)
    prose, command = (
        "the interval is for other prompts like these eight prompts",
        "pcpo-ray train shapes_pcpo " + "x" * 30,
    )
    with Display(small.run("model", steps=6), console) as display:
        display.say(prose)
        display.say(command)
    lines = [line.strip() for line in plain(file.getvalue()).splitlines()]
    assert "the interval is for other prompts like" in lines and "these eight prompts" in lines
    assert command in lines


def test_what_rounding_leaves_is_no_change():
    file = io.StringIO()
    display = Display(small.run("model", steps=6), Console(file=file, width=120))
    display.row(evaluated(4, aesthetic={"mean": -6.94e-18, "low": None, "high": None}))
    assert "aesthetic 5.5 (+0)" in file.getvalue()


def test_as_json_every_line_is_an_object_with_the_record(shown):
    rows = [json.loads(line) for line in shown(terminal=True, as_json=True).splitlines()]
    assert [row["level"] for row in rows] == ["info", "warning", "info", "info", "info", "info", "info"]
    assert rows[4]["record"]["step"] == 1 and rows[4]["message"].startswith("step 1/6: ")


def test_the_level_leaves_lines_out_and_debug_names_every_phase(shown):
    assert [line[28:] for line in shown(terminal=False, level="warning").splitlines()] == [
        "fault: sampler-1 is gone [in this process]"
    ]
    assert "evaluating step 0\n" in shown(terminal=False, level="debug")


def test_on_a_terminal_the_block_stays_and_evaluations_stand_above_it(shown):
    words = plain(shown(terminal=True))
    assert "fault: sampler-1 is gone [in this process]\n" in words and "step 2/6: " not in words
    assert words.count("evaluation at step 0: ") == 1
    *_, bar, _, reward, held_out, idle, last = words.rstrip().splitlines()
    assert "2/6" in bar and "24 s left" in bar and "reward    0.250 ± 0.5, start 0.200, change +0.05" in reward
    assert held_out.startswith("held-out  1.0000 at step 0") and "samplers 37%, learner 60%" in idle
    assert last == "next: look"
    written = shown(terminal=True)
    assert "\x1b[?25l" in written  # the cursor is hidden while it is redrawn
    assert written.index("\x1b[?25h") > written.index("\x1b[?25l")  # and shown at the end


def test_of_one_process_it_is_told_how_long_each_role_worked(shown):
    assert "idle samplers 37%, learner 60%" in shown(terminal=False)
    words = shown(terminal=False, local=True)
    assert "in turn samplers 63%, learner 40%" in words and "idle" not in words


def test_a_dumb_terminal_gets_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    file = io.StringIO()
    with Display(small.run("model", steps=6), Console(file=file, force_terminal=True, width=80)) as display:
        display.phase("loading the model")
    assert "\x1b" not in file.getvalue() and "INFO    loading the model" in file.getvalue()


def test_prints_of_others_do_not_break_the_block():
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=80, color_system=None)
    with Display(small.run("model", steps=6), console):
        print("\x1b[36m(raylet)\x1b[0m low on memory")
    assert "(raylet) low on memory\n" in plain(file.getvalue()) and "\x1b[36m" not in file.getvalue()


@pytest.mark.parametrize(("error", "word"), [(KeyboardInterrupt(), "stopped"), (ValueError("no"), "failed")])
def test_the_end_is_named_and_the_block_is_not_erased(error, word):
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=80, color_system=None)
    with pytest.raises(type(error)), Display(small.run("model", steps=6), console) as display:
        display.row(learned(1, 8.0))
        raise error
    assert [line.rstrip() for line in plain(file.getvalue()).splitlines()][-4] == f"phase     {word}"
    assert "1/6" in plain(file.getvalue()).splitlines()[-5]


def test_a_phase_that_goes_on_is_named_again_and_again_less_often(monkeypatch):
    monkeypatch.setattr(progress, "FIRST", 0.0)
    display = Display(small.run("model", steps=6), Console(file=io.StringIO(), width=120))
    display.phase("loading the model")
    waits, said = iter([False, False, True]), []
    monkeypatch.setattr(display.over, "wait", lambda seconds: next(waits))
    monkeypatch.setattr(display.log, "write", said.append)
    display.again = 0.0
    display._repeat()
    assert said == ["loading the model, 0 s"] * 2
    display.again, waits = 40.0, iter([False, True])
    display.log.wrote -= 41.0
    display._repeat()
    assert len(said) == 3 and display.again == progress.LATER


def test_a_resumed_run_shows_its_reward_since_the_start(shown):
    file = io.StringIO()
    display = Display(small.run("model", steps=6), Console(file=file, width=120))
    display.known([evaluated(0), learned(1, 8.0, 0.1), learned(2, 8.0, 0.2)])
    assert file.getvalue() == "" and display.shown.left is None
    display.row(learned(3, 8.0, 0.4))
    assert "reward 0.4 ± 0.5 (+0.3 since step 1)" in file.getvalue() and "24 s left" in file.getvalue()


def test_phases_are_named_with_what_is_done_of_them():
    assert phase_text("evaluate", 0, 3, 8) == "evaluating step 0: 3/8 images"
    assert phase_text("sample_and_score", 1, 2, 6) == "sampling step 1: 2/6 groups"
    assert phase_text("learn", 1) == "learning step 1" and phase_text("publish", 0) == "publishing the weights"


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
    assert told == ["a line could not be shown: KeyError: 'reward_mean'"]
