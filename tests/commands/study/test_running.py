"""A real study of a small model: made, interrupted, continued, reported; runs that are there are kept."""

import json
import signal
import subprocess
import sys
import time

import pytest
import yaml

from pcpo_ray.commands.study import plan, results, running
from pcpo_ray.config import files
from tests.support import ROOT, small, stored
from tests.support.part import MORE


def written(path, model, *, seconds=0.0, **changes):
    """A study's file: 2 arms x 2 seeds x 2 steps."""
    run = small.run(model, steps=2, evaluation__every=1, rewards=small.slow(seconds))
    data = {
        "name": "tiny",
        "base": files.plain(run),
        "arms": {
            "native": {"set": {"credit.kind": "native"}},
            "pcpo": {"set": {"credit.kind": "reweight"}, "varies": ["credit"]},
        },
        "seeds": [1, 2],
        "targets": {"kind": "gain", "values": [0.1]},
        **changes,
    }
    path.write_text(yaml.safe_dump(json.loads(json.dumps(data)), sort_keys=False))
    return path


def started(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "pcpo_ray.commands.app", "study", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


@MORE
@pytest.mark.chaos
def test_a_study_is_interrupted_continued_and_reported_from_its_runs_alone(small_sd, tmp_path):
    path = written(tmp_path / "tiny.yaml", small_sd, seconds=0.3)
    words = (path, "--local", "--runs", tmp_path / "runs", "--jobs", 2)
    folder = tmp_path / "runs" / "tiny"
    going = started(*words)
    try:
        deadline = time.monotonic() + 250
        while not any('"train"' in line for line in lines(folder / "tiny-native-seed1" / "metrics.jsonl")):
            assert time.monotonic() < deadline and going.poll() is None
            time.sleep(0.05)
        going.send_signal(signal.SIGINT)
        said, _ = going.communicate(timeout=120)
    finally:
        going.kill()
    assert going.returncode == 130 and "the same command continues the study" in said
    begun = {kept.name: kept.read_bytes() for kept in folder.glob("*/config.yaml")}
    assert begun and not (folder / "report.html").exists()

    done = started(*words)
    said, _ = done.communicate(timeout=240)
    assert done.returncode == 0, said
    study = plan.load(path)
    events = [json.loads(line) for line in lines(folder / "tiny-native-seed1" / "events.jsonl")]
    resumed = any(event["kind"] == "resumed" for event in events)
    assert resumed or events[-1]["kind"] == "finished"
    found = results.read(study, folder)
    assert [len(arm.records) for arm in found.arms.values()] == [2, 2]
    assert "Held-out reward after 2 updates" in said and "native" in said

    page = (folder / "report.html").read_bytes()
    times = {kept: kept.stat().st_mtime_ns for kept in folder.glob("*/metrics.jsonl")}
    (folder / "report.html").unlink()
    again = started(*words, "--report-only")
    said, _ = again.communicate(timeout=120)
    assert again.returncode == 0, said
    assert (folder / "report.html").read_bytes() == page
    assert {kept: kept.stat().st_mtime_ns for kept in times} == times


def test_a_run_that_fails_is_named_with_its_words_and_the_others_are_made(command, small_sd, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for the runs' processes, which start in tmp_path
    arms = {
        "good": {},
        "bad": {"set": {"rewards": [{"kind": "tests.commands.study.test_running:Failing"}]}, "varies": ["rewards"]},
    }
    path = written(tmp_path / "tiny.yaml", small_sd, arms=arms, set={"steps": 1})
    status, said, errors = command("study", path, "--local", "--runs", tmp_path / "runs", "--jobs", 2)
    said += errors
    assert status == 1 and "2 of 4 runs failed" in said
    assert "tiny-bad-seed1, exit status 1: error: " in said and "tiny-bad-seed2" in said
    study, folder = plan.load(path), tmp_path / "runs" / "tiny"
    for one in plan.main_runs(study, {}):
        assert results.finished(folder / one.run.name, one.run) == (one.arm == "good")


class Failing:
    def score(self, images, prompts):
        raise ValueError("no score here")


def test_runs_that_are_there_and_whole_start_nothing(tmp_path, monkeypatch):
    study = stored.study(search={"rates": [1e-3, 2e-3], "seeds": [8]})
    curve = stored.rising({"ddpo": 0.1, "pcpo": 0.2})
    stored.store(tmp_path, plan.search_runs(study), curve)
    stored.store(tmp_path, plan.main_runs(study, results.chosen(study, tmp_path)), curve)
    monkeypatch.setattr(subprocess, "Popen", None)  # it would be called
    said = []
    running.Runner(study, tmp_path, local=True, jobs=2, say=said.append).run()
    assert said == ["4 of 4 runs are there already", "6 of 6 runs are there already"]
    assert files.parse_as(plan.Study, yaml.safe_load((tmp_path / "study.yaml").read_text()), source="x") == study


@pytest.mark.parametrize(
    "change, words",
    [
        ({"seeds": [1]}, ["error: ", "tiny.yaml", "seeds", "at least 2"]),
        ({"set": {"stpes": 3}}, ["error: ", "arm native", "stpes", "did you mean 'steps'?"]),
        ({"arms": {"a": {}, "b": {"set": {"steps": 3}}}}, ["error: ", "arm b cannot be compared with a", "steps"]),
    ],
)
def test_bad_studies_are_one_message_and_leave_nothing_behind(command, small_sd, tmp_path, change, words):
    path = written(tmp_path / "tiny.yaml", small_sd, **change)
    status, _, errors = command("study", path, "--local")
    assert status == 1 and all(word in errors for word in words), errors
    assert errors.count("error: ") == 1 and not (tmp_path / "runs").exists()


def test_a_report_without_runs_names_them(command, small_sd, tmp_path):
    path = written(tmp_path / "tiny.yaml", small_sd)
    status, _, errors = command("study", path, "--report-only")
    assert status == 1 and "4 of 4 runs are missing or unfinished" in errors and "pcpo seed 2" in errors


def test_as_many_runs_go_on_as_there_are_cores_for_their_threads(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    assert running.default_jobs(stored.study(), local=True) == 8
    assert running.default_jobs(stored.study(set={"workers.learner.threads": 3}), local=True) == 2
    assert running.default_jobs(stored.study(set={"workers.learner.threads": 99}), local=True) == 1
    assert running.default_jobs(stored.study(), local=False) == 1


def test_of_several_studies_none_begins_where_one_is_wrong(command, small_sd, tmp_path):
    one, other = (written(tmp_path / f"{name}.yaml", small_sd) for name in ("one", "other"))
    status, _, errors = command("study", one, other, "--local", "--runs", tmp_path / "runs")
    assert status == 1 and "['tiny']" in errors and "a name of its own" in errors
    written(other, small_sd, name="unequal", arms={"a": {}, "b": {"set": {"steps": 3}}})
    status, _, errors = command("study", one, other, "--local", "--runs", tmp_path / "runs")
    assert status == 1 and "unequal" in errors and "steps" in errors
    assert not (tmp_path / "runs").exists()
