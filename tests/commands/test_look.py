"""`list` and `status`: each state has its words and its exit code, and what to do next."""

import json
import re
import subprocess
import sys
import time

import pytest

from pcpo_ray.cluster.control import jobs
from pcpo_ray.commands import look, operate
from pcpo_ray.commands.status_text import lines
from pcpo_ray.config import files
from pcpo_ray.runs import writer
from tests.support import ROOT, small


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Make a run in runs/ that is in a state; nothing of Ray is there."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(look, "cluster_here", lambda: False)

    def make(name, state, **more):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(files.dump(small.run("model", name=name, steps=6)))
        row = {"run": name, "state": state, "step": 3, "steps": 6, "again": f"pcpo-ray train {name}.yaml --resume"}
        (folder / "status.json").write_text(json.dumps({**row, "time": time.time(), **more}))
        return folder

    return make


@pytest.mark.parametrize(
    ("state", "code", "words"),
    [
        ("finished", 0, "next       pcpo-ray evaluate runs/x"),
        ("stopped", 12, "go on      pcpo-ray train x.yaml --resume"),
        ("failed", 13, "error      the disk is full"),
        ("training", 13, "ended without a last word"),  # and its process is gone
    ],
)
def test_a_run_that_has_ended_has_its_own_exit_code_and_a_next_command(command, run, state, code, words):
    run("x", state, error="the disk is full" if state == "failed" else "")
    for name in ("x", "runs/x"):
        status, said, errors = command("status", name)
        assert (status, errors) == (code, "") and words in said
    assert json.loads(command("status", "x", "--json")[1])["run"] == "x"
    assert command("status", "x", "--watch")[0] == code


@pytest.mark.parametrize(("state", "code"), [("starting", 10), ("training", 11), ("evaluating", 11), ("stopping", 11)])
def test_a_run_that_goes_on_is_11_and_one_that_starts_10(command, run, monkeypatch, state, code):
    run("x", state)
    monkeypatch.setattr(writer, "held", lambda folder: True)
    assert command("status", "x")[0] == code


def test_a_run_that_never_was_is_14_with_a_guess(command, run):
    run("demo", "finished")
    status, said, errors = command("status", "dmeo")
    assert (status, said) == (14, "") and errors.startswith("error: there is no run at dmeo (did you mean runs/demo?)")
    assert json.loads(command("status", "dmeo", "--json")[1]) == {"run": "dmeo", "state": "none", "place": "dmeo"}


def test_a_run_that_is_not_there_is_told_with_every_place_that_was_asked(command, run, monkeypatch, tmp_path):
    monkeypatch.setattr(look, "cluster_here", lambda: True)
    asked = {"run": "mine", "state": "none", "cluster": "http://HEAD:1", "there": ["yours"]}
    monkeypatch.setattr(look, "_of_cluster", lambda name, address: dict(asked))
    errors = command("status", "mine", "--runs", "/shared/runs")[2]
    assert "there is no run at /shared/runs/mine; there are none" in errors
    assert errors.rstrip().endswith("no run named 'mine' in the cluster at http://HEAD:1; there are yours")


def test_where_there_is_no_run_status_and_report_say_how_to_begin_one(command, run):
    for verb, code in (("status", 14), ("report", 1), ("sample", 1)):
        status, _, errors = command(verb, "mine", *(["a cat"] if verb == "sample" else []))
        assert status == code and errors.startswith(
            "error: there is no run at mine; there are none; begin one: pcpo-ray "
        )


def test_every_exit_code_of_status_is_in_its_help_and_in_the_guide():
    codes = {str(code) for code in (*look.CODES.values(), look.GOES_ON)}
    assert codes <= set(re.findall(r"\d+", look.EPILOG))
    guide = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
    assert codes == set(re.findall(r"^\| (\d+) \|", guide, flags=re.MULTILINE))


def test_a_run_that_was_moved_is_continued_where_it_is_now(command, run):
    run("x", "stopped", folder="/elsewhere/runs/x", checkpoint="/elsewhere/runs/x/checkpoints/step-000003")
    status, said, _ = command("status", "x")
    assert status == 12 and "/elsewhere" not in said
    assert "go on      pcpo-ray train runs/x/config.yaml --resume" in said


def test_records_that_cannot_be_read_hide_no_other_run(command, run):
    run("broken", "stopped", time="x")
    run("whole", "finished")
    status, said, _ = command("list")
    assert status == 0 and "broken" in said and "whole" in said
    status, said, _ = command("status", "broken")
    assert status == 13 and "its records cannot be read: TypeError" in said


def test_an_address_that_does_not_answer_hides_no_run_of_the_folder(command, run):
    run("x", "finished")
    status, said, errors = command("list", "--address", "http://127.0.0.1:1")
    assert status == 1 and "x" in said.splitlines()[1] and "no Ray dashboard at http://127.0.0.1:1" in errors


def test_a_cluster_that_nobody_named_and_cannot_be_asked_is_told(command, run, monkeypatch):
    monkeypatch.setattr(look, "cluster_here", lambda: True)
    monkeypatch.setattr(look, "_of_cluster", lambda name, address: jobs.Client("http://127.0.0.1:1", answer=1.0))
    status, _, errors = command("status", "x")
    assert status == 14 and "could not be asked: no Ray dashboard at http://127.0.0.1:1" in errors
    assert json.loads(command("status", "x", "--json")[1])["state"] == "none"
    assert command("status", "x", "--address", "auto")[0] == 1  # asked for by name


def test_a_cluster_whose_address_is_not_given_is_named_and_not_asked(command, run, monkeypatch):
    run("x", "finished")
    monkeypatch.setattr(look, "cluster_here", lambda: True)
    monkeypatch.setattr(look, "_in_cluster", lambda address: [] if address is None else pytest.fail("it was asked"))
    status, said, errors = command("list")
    assert status == 0 and "x" in said and "--address auto lists its runs too" in errors


def test_watching_waits_for_a_run_and_goes_to_its_end(run, monkeypatch):
    monkeypatch.setattr(look, "EVERY", 0.0)
    found = iter([None, {"state": "starting"}, {"state": "training"}, {"state": "finished"}, {"state": "never"}])
    seen = [row["state"] for row in look._each(lambda: next(found), "x", watch=True)]
    assert seen == ["none", "starting", "training", "finished"]
    monkeypatch.setattr(look, "APPEARS", 0.0)
    assert [row["state"] for row in look._each(lambda: None, "x", watch=True)] == ["none"]
    assert len(list(look._each(lambda: {"state": "training"}, "x", watch=False))) == 1


def test_what_holds_no_runs_is_refused_where_none_would_be_listed(command, run, tmp_path):
    run("one", "finished")
    status, said, errors = command("list", "rusn")
    assert (status, said) == (1, "") and "there is no folder rusn; expected one that holds run folders" in errors
    status, _, errors = command("list", "runs/one")
    assert status == 1 and "runs/one is a run, and no folder of runs; it is shown by: pcpo-ray status" in errors
    status, _, errors = command("list", "s3://bucket/runs/")
    assert status == 1 and "pcpo-ray status s3://bucket/runs/NAME" in errors
    assert "runs/one" in command("list", "--runs", "runs")[1]


def test_list_and_status_without_a_name_are_a_table_or_json(command, run):
    assert "no runs in runs" in command("list")[1]
    run("one", "finished", reward=0.5)
    run("two", "stopped")
    status, said, _ = command("list")
    found = sorted(line.split()[:3] for line in said.splitlines()[1:])
    assert status == 0 and found == [["one", "finished", "3/6"], ["two", "stopped", "3/6"]]
    header = ["run", "state", "step", "reward", "change", "heard", "where"]
    assert command("status")[1].splitlines()[0].split() == header
    rows = json.loads(command("list", "runs", "--json")[1])
    assert {row["run"]: row["state"] for row in rows} == {"one": "finished", "two": "stopped"}


def test_a_folder_answers_without_torch_or_ray(run, tmp_path):
    run("x", "finished")
    program = (
        "import sys\nfrom pcpo_ray.commands.app import app\n"
        "try: app(['status', 'x'])\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'ray', 'numpy', 'diffusers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.stdout.splitlines()[0].startswith("run        x: finished") and done.stdout.splitlines()[-1] == "[]"


def test_a_named_cluster_is_asked_and_no_folder(command, run):
    run("x", "finished")
    status, _, errors = command("status", "x", "--address", "http://127.0.0.1:1")
    assert status == 1 and "no Ray dashboard at http://127.0.0.1:1" in errors


def test_runs_of_a_cluster_are_listed_beside_those_of_the_folder_once(run, tmp_path, monkeypatch):
    folder = run("x", "finished")
    monkeypatch.chdir(tmp_path)
    there = [{"run": "x", "place": str(folder), "age": 0.0}, {"run": "y", "place": "/shared/y", "age": 1.0}]
    monkeypatch.setattr(look, "_in_cluster", lambda address: there)
    assert sorted((row["run"], row["place"]) for row in look.looks("runs", None)) == [
        ("x", "runs/x"),
        ("y", "/shared/y"),
    ]


def test_a_run_that_only_its_job_knows_reads_well():
    found = {"run": "b", "state": "starting", "step": 0, "steps": 0, "waiting": "job b-1, which is RUNNING for 8 s"}
    assert lines(found)[:2] == ["run        b: starting, step 0 of ?", "waits for  job b-1, which is RUNNING for 8 s"]


def test_a_pool_says_what_there_is_room_for():
    size = {"wanted": 100, "ready": 5, "room": "room for 5; 95 wait for CPU: 0.5 each, 0 free", "losses": {}}
    found = {"run": "b", "state": "training", "step": 1, "steps": 2, "samplers": size}
    assert f"samplers   100 wanted, 5 ready ({size['room']})" in lines(found)
    fewer = {**found, "samplers": {**size, "wanted": 5}}  # since, fewer were asked for
    assert "samplers   5 wanted, 5 ready" in lines(fewer)
    assert operate._readiness(found, "samplers") == f", 5 ready; {size['room']}"
    assert operate._readiness(fewer, "samplers") == ", 5 ready"


@pytest.mark.parametrize(
    "words", ["report", "status", "list", "evaluate", "sample", "stop", "scale --samplers 2", "logs", "chaos", "plan"]
)
def test_every_command_tells_a_part_of_a_run_which_folder_to_give(command, run, words):
    (run("demo", "finished") / "report.html").touch()
    name, *options = words.split()
    before = ["shapes_pcpo", "--from"] if name == "plan" else []
    after = ["a ring"] if name == "sample" else options
    status, _, errors = command(name, *before, "runs/demo/report.html", *after)
    assert status == 1 and errors == (
        "error: runs/demo/report.html is a part of a run; give the run's folder: runs/demo\n"
    )
