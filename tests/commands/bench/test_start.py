"""How long a process takes to be there."""

import numpy as np
import pytest

from pcpo_ray.commands.bench import start
from pcpo_ray.errors import BenchError
from tests.support import small

TOUCH = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).touch(); time.sleep(60)"


def test_a_process_is_timed_until_its_file_is_there_and_ended(tmp_path):
    assert 0 < start.until_there(["-c", TOUCH, str(tmp_path / "seen")], tmp_path / "seen") < 60


def test_a_process_that_ends_before_says_why(tmp_path):
    with pytest.raises(BenchError, match=r"python -c raise .* ended with 1 before a sample: (.|\n)*no disk"):
        start.until_there(["-c", "raise SystemExit('no disk')"], tmp_path / "seen")


def test_the_deadline_is_an_error_and_the_process_is_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(start, "DEADLINE", 0.2)
    with pytest.raises(BenchError, match="waited"):
        start.until_there(["-c", "import time; time.sleep(60)"], tmp_path / "seen")


def test_the_first_images_at_a_scorer_leave_the_file(tmp_path):
    arrival = start.Arrival(str(tmp_path / "seen"))
    assert not (tmp_path / "seen").exists()
    assert arrival.score(np.zeros((2, 4, 4, 3), np.uint8), ["", ""]) == [0.0, 0.0]
    assert (tmp_path / "seen").exists()


def test_what_is_started_is_the_configs_first_step(small_sd):
    run = start.measured_on(small.run(small_sd, steps=9, optimizer__minibatches=2, trackers="[tensorboard]"))
    assert (run.steps, run.rollout.prompts, run.evaluation.count, run.trackers) == (1, 2, 1, ())
