"""How a run is, from what its folder holds: starting, going, finished, stopped, failed, killed, or not there."""

import json
import os
import time

import pytest

from pcpo_ray.config import files
from pcpo_ray.errors import RunError
from pcpo_ray.runs import ends, look, writer
from pcpo_ray.runs.writer import Token
from tests.support import small


@pytest.fixture
def folder(tmp_path):
    """A run's folder, as it is when its workers start."""
    made = tmp_path / "runs" / "small"
    made.mkdir(parents=True)
    (made / "config.yaml").write_text(files.dump(small.run("model", steps=6)))
    writer.take(made, Token.new())
    return made


def seen(place, now=None):
    found = look.look(str(place), now)
    assert found is not None
    return found


def add(folder, name, **row):
    with (folder / name).open("a") as file:
        file.write(json.dumps({"time": 1.0, **row}) + "\n")


def keep(folder, **status):
    kept = look.kept({"run": "small", "step": 3, "steps": 6, "events": [1], **status}, "pcpo-ray train x --resume")
    (folder / "status.json").write_text(json.dumps(kept))


def gone(folder, *, machine=None):
    """Have the writer's process be gone: the lock is nobody's any more."""
    os.close(writer._held.pop(((folder / ".lock").stat().st_dev, (folder / ".lock").stat().st_ino)))
    if machine is not None:
        token = json.loads((folder / ".writer").read_text())
        (folder / ".writer").write_text(json.dumps({**token, "machine": machine, "host": "elsewhere"}))


def test_a_run_whose_process_lives_is_as_it_says(folder):
    assert seen(folder)["state"] == "starting"
    keep(folder, state="evaluating", reward=0.5, waiting="evaluating step 0: 3/8 images")
    found = seen(folder)
    assert (found["state"], found["step"], found["steps"], found["waiting"][-10:]) == ("evaluating", 3, 6, "3/8 images")
    assert found["again"] == "pcpo-ray train x --resume" and found["age"] < 60 and "events" not in found


@pytest.mark.parametrize(
    ("events", "state", "error"),
    [
        (["started", "finished"], "finished", ""),
        (["started", "stopped"], "stopped", ""),
        (["started", "rolled_back"], "stopped", "it collapsed"),
        (["started", "failed"], "failed", "the disk is full"),
        (["started", "stopped", "started"], "failed", "ended without a last word"),
        (["started"], "failed", "ended without a last word"),
    ],
)
def test_a_run_whose_process_is_gone_has_ended_as_its_events_say(folder, events, state, error):
    keep(folder, state="training")
    for kind in events:
        add(folder, "events.jsonl", kind=kind, error="the disk is full", alarm="it collapsed" if "back" in kind else "")
    gone(folder)
    found = seen(folder)
    assert found["state"] == state and error in found["error"]


def test_a_run_of_another_machine_is_lost_after_long_silence_only(folder):
    keep(folder, state="training")
    gone(folder, machine="another")
    assert seen(folder)["state"] == "training"
    found = seen(folder, time.time() + look.SILENT + 1)
    assert found["state"] == "lost" and "elsewhere was not heard of since" in found["error"]


def test_a_run_without_a_status_is_told_from_its_records(folder):
    for step in (1, 2):
        add(folder, "metrics.jsonl", kind="train", step=step, reward_mean=step / 2, reward_std=0.1, seconds=3.0)
    add(folder, "metrics.jsonl", kind="evaluation", step=2, rewards={"reward": {"mean": 0.75}})
    (folder / "checkpoints" / "step-000002").mkdir(parents=True)
    (folder / "checkpoints" / "step-000002" / "state.json").touch()
    (folder / "checkpoints" / "step-000003").mkdir()  # under way
    gone(folder)
    found = seen(folder)
    assert (found["step"], found["reward"], found["evaluated"], found["seconds"]) == (2, 1.0, {"reward": 0.75}, 3.0)
    assert found["checkpoint"].endswith("step-000002")
    assert found["again"] == f"pcpo-ray train {folder}/config.yaml --runs {folder.parent} --resume"


def test_the_newest_checkpoint_is_none_that_the_run_has_not_made(folder):
    for name in ("step-000002", "step-000010", "step-000010-best", "step-0000012"):
        (folder / "checkpoints" / name).mkdir(parents=True)
        (folder / "checkpoints" / name / "state.json").touch()
    assert seen(folder)["checkpoint"] == str(folder / "checkpoints" / "step-000010")


def test_records_that_are_newer_than_the_status_count(folder):
    keep(folder, state="training", step=0, reward=None)
    for step in (1, 2):
        add(folder, "metrics.jsonl", kind="train", step=step, reward_mean=step / 2, reward_std=0.1, seconds=3.0)
    gone(folder)
    found = seen(folder)
    assert (found["step"], found["reward"], found["again"]) == (2, 1.0, "pcpo-ray train x --resume")


def test_long_records_are_read_from_both_ends_only(folder, monkeypatch):
    monkeypatch.setattr(ends, "BLOCK", 1000)
    for step in range(1, 200):
        add(folder, "metrics.jsonl", kind="train", step=step, reward_mean=step, reward_std=0.0)
    found = seen(folder)
    assert (found["first_reward"], found["step"], found["reward"]) == (1, 199, 199)


def test_what_is_no_run_is_none_and_runs_are_listed_the_newest_first(folder, tmp_path):
    assert look.look(str(tmp_path / "absent")) is None
    other = folder.parent / "other"
    other.mkdir()
    for name in ("config.yaml", "metrics.jsonl"):
        (other / name).write_text(files.dump(small.run("model", name="other")) if name == "config.yaml" else "")
        os.utime(other / name, (1.0, 1.0))
    for name in ("no-run", "another-programs"):
        (folder.parent / name).mkdir()
    (folder.parent / "another-programs" / "config.yaml").write_text("model: resnet\n")
    assert look.look(str(folder.parent / "another-programs")) is None
    assert [row["run"] for row in look.looks(str(folder.parent))] == ["small", "other"]


def test_runs_are_found_by_name_folder_and_url(folder, monkeypatch):
    monkeypatch.chdir(folder.parent.parent)
    assert look.place_of("small") == look.place_of("runs/small") == "runs/small"
    assert look.place_of(str(folder)) == str(folder)
    assert look.place_of("s3://bucket/runs/x") == "s3://bucket/runs/x"
    assert look.place_of("x", "s3://bucket/runs?region=eu") == "s3://bucket/runs/x?region=eu"
    assert look.place_of("absent") == "absent"
    assert [look.name_of(text) for text in ("x", "runs/x/", "s3://b/runs/x?region=eu")] == ["x"] * 3
    assert look.name_of("runs/what?") == "what?"


def test_a_run_that_is_not_there_is_guessed_and_the_others_are_named(folder, monkeypatch):
    monkeypatch.chdir(folder.parent.parent)
    assert str(look.no_run("smal")) == "there is no run at smal (did you mean runs/small?); there are runs/small"
    assert str(look.no_run("runs")) == (
        "there is no run at runs, which holds runs: small; name one of them, such as runs/small"
    )
    monkeypatch.chdir("/")
    assert (
        str(look.no_run("nothing"))
        == "there is no run at nothing; there are none; begin one: pcpo-ray train shapes_pcpo --local"
    )


@pytest.mark.parametrize("part", ["report.html", "checkpoints", "checkpoints/step-000002", "metrics.jsonl"])
def test_a_part_of_a_run_is_told_which_folder_to_give(folder, monkeypatch, part):
    monkeypatch.chdir(folder.parents[1])
    whole = folder / part
    whole.parent.mkdir(exist_ok=True)
    whole.mkdir() if "." not in part else whole.touch()
    with pytest.raises(RunError, match=f"^runs/small/{part} is a part of a run; give the run's folder: runs/small$"):
        look.place_of(f"runs/small/{part}")
    with pytest.raises(RunError, match=r"give the run's folder: s3://bucket/runs/small$"):
        look.place_of(f"s3://bucket/runs/small/{part}")
    assert look.place_of("runs/small") == "runs/small"


def test_a_folder_is_checked_before_anything_is_loaded(folder):
    runs = str(folder.parent)
    look.check_start(runs, "small", resume=True)
    look.check_start(runs, "new", resume=False)
    look.check_start("s3://bucket/runs", "small", resume=False)
    with pytest.raises(RunError, match=r"small exists; continue it with --resume"):
        look.check_start(runs, "small", resume=False)
    with pytest.raises(RunError, match=r"no run at .*new to resume; leave out --resume"):
        look.check_start(runs, "new", resume=True)


def test_a_look_at_the_lock_keeps_no_run_from_starting(folder):
    assert writer.held(folder) is True
    gone(folder)
    assert writer.held(folder) is False and writer.held(folder / "absent") is False
    writer.lock(folder)


def test_a_stored_run_is_as_it_was_stored(tmp_path):
    url = f"file://{tmp_path}/runs/small"
    (tmp_path / "runs" / "small").mkdir(parents=True)
    assert look.look(url) is None
    keep(tmp_path / "runs" / "small", state="training")
    found = seen(url)
    assert (found["state"], found["stored"], found["place"]) == ("training", True, url)
