"""A tracker that fails, hangs or falls behind costs a run its numbers there, and nothing else."""

import json
import threading

import pytest

from pcpo_ray.errors import RunError
from pcpo_ray.runs.folder import LocalFolder
from pcpo_ray.training import trackers
from pcpo_ray.training.recorder import Recorder
from tests.support import small


@pytest.fixture
def recorder(tmp_path, monkeypatch):
    """A recorder with a tracker whose methods are replaced; what it says, its events."""
    from accelerate.tracking import TensorBoardTracker

    def make(**methods):
        for name, method in methods.items():
            monkeypatch.setattr(TensorBoardTracker, name, method)
        made = Recorder.create(LocalFolder(local=tmp_path / "run"), small.run("model", trackers="[tensorboard]"))
        said = []
        made.say = said.append
        made.start_trackers()
        return made, said

    return make


def events(recorder):
    lines = (recorder.folder / "events.jsonl").read_text().splitlines()
    return [row["message"] for row in map(json.loads, lines) if row["kind"] == "trouble"]


@pytest.mark.parametrize("error", [ConnectionError("no route"), SystemExit(1), KeyboardInterrupt("its own")])
def test_one_that_cannot_log_is_told_of_once_with_what_it_is_without(recorder, error):
    def log(self, values, step=None, **more):
        raise error

    made, said = recorder(log=log)
    for step in range(4):
        made.record("train", step, {"loss": 1.0})
    made.close()
    assert len(made.metrics()) == 4
    assert events(made) == said == [
        f"tracker 'tensorboard' fails, and the run goes on without it: {type(error).__name__}: {error}",
        "tracker 'tensorboard' is without 4 rows; metrics.jsonl has all",
    ]  # fmt: skip


def test_one_that_cannot_finish_is_told_of(recorder):
    def finish(self):
        raise OSError("the upload broke off")

    made, said = recorder(finish=finish)
    made.record("train", 1, {"loss": 1.0})
    made.close()
    assert events(made) == said and "OSError: the upload broke off" in said[0] and len(said) == 1


def test_one_that_hangs_holds_up_neither_a_step_nor_the_end(recorder, monkeypatch):
    monkeypatch.setattr(trackers, "FINISH", 0.2)
    monkeypatch.setattr(trackers, "WAITING", 5)
    released = threading.Event()
    made, said = recorder(log=lambda self, values, step=None, **more: released.wait(250))
    for step in range(20):
        made.record("train", step, {"loss": 1.0})
    made.close()
    assert len(made.metrics()) == 20  # and nothing has waited for the tracker
    released.set()
    assert "5 rows wait for it" in said[0] and said[0] in events(made)


def test_one_that_does_not_answer_at_the_start_is_an_error(recorder, monkeypatch):
    monkeypatch.setattr(trackers, "START", 0.2)
    released = threading.Event()
    with pytest.raises(RunError, match=r"'tensorboard' does not start: no answer in 0\.2 s; set it up as"):
        recorder(start=lambda self: released.wait(250))
    released.set()
