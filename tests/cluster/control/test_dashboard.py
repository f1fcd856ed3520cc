"""How the runs of a cluster are, as its dashboard tells: no job is made for it."""

import json
import time
from typing import get_args

import pytest

from pcpo_ray.cluster.control import dashboard, jobs
from pcpo_ray.cluster.control.controller import MARK
from pcpo_ray.commands.log import Form, Log
from pcpo_ray.commands.status_text import lines
from pcpo_ray.errors import ClusterError
from tests.support.dashboard import VERSION, job, server


def actor(run, state, number=1):
    return {"actor_id": f"{run}{number}", "name": run, "state": state, "job_id": f"{number:02d}", "ray_namespace": "x"}


def asked(actors=(), listed=(), logs=None):
    """Look at all runs of a cluster with these actors, jobs and logs by actor; what was asked for on the way."""

    def answer(handler):
        path = handler.path
        if path == "/api/version":
            return VERSION
        if path == "/api/jobs/":
            return 200, json.dumps(list(listed))
        if path.startswith("/api/v0/actors?"):
            return 200, json.dumps({"result": True, "msg": "", "data": {"result": {"result": list(actors)}}})
        name = path.partition("actor_id=")[2].partition("&")[0]
        return (200, (logs or {})[name]) if name in (logs or {}) else (500, "no such file")

    with server(answer) as (address, seen):
        rows = dashboard.looks(jobs.Client(address))
    assert all(
        path.split("?")[0] in ("/api/version", "/api/jobs/", "/api/v0/actors", "/api/v0/logs/file") for path, _ in seen
    )
    return {row["run"]: row for row in rows}


def told(**status):
    row = {"run": "a", "state": "training", "step": 3, "steps": 6, "folder": "/runs/a", "time": time.time(), **status}
    return f":actor_name:Controller\n{MARK}{json.dumps({**row, 'step': 1})}\n{MARK}{json.dumps(row)}\n"


def test_a_run_that_goes_on_is_as_its_controller_said_last():
    found = asked([actor("a", "ALIVE")], logs={"a1": told(time=time.time() - 5)})["a"]
    assert (found["state"], found["step"], found["place"]) == ("training", 3, "/runs/a") and 4 < found["age"] < 60


def test_a_job_whose_run_has_not_begun_is_starting():
    found = asked(listed=[job("a", int(1000 * time.time()) - 8000, "RUNNING", submission_id="a-1")])["a"]
    assert found["state"] == "starting" and found["waiting"].startswith("job a-1, which is RUNNING for ")


def test_a_job_that_runs_is_not_silent_before_its_run_speaks():
    found = asked(listed=[job("a", int(1000 * (time.time() - 300)), "RUNNING")])["a"]
    assert found["age"] < 60 and "hangs" not in "\n".join(lines(found))


@pytest.mark.parametrize(
    ("status", "message", "state", "error"),
    [
        ("SUCCEEDED", "", "finished", ""),
        ("STOPPED", "", "stopped", "its job was stopped"),
        ("FAILED", "exit code 137", "failed", "job a-1: exit code 137"),
        (
            "FAILED",
            "exit code 1, last available logs (truncated to 20,000 chars):\nmuch\nerror: no model\n",
            "failed",
            "job a-1: exit code 1: no model",
        ),
    ],
)
def test_a_job_that_has_ended_says_how_and_the_run_how_far_it_came(status, message, state, error):
    began = int(1000 * (time.time() - 100))
    more = {
        "submission_id": "a-1",
        "message": message,
        "end_time": began + 50,
        "metadata": {jobs.RUN: "a", jobs.AGAIN: "again"},
    }
    found = asked([actor("a", "DEAD")], [job("a", began, status, **more)], {"a1": told()})["a"]
    assert (found["state"], found.get("error", ""), found["step"], found["again"]) == (state, error, 3, "again")


@pytest.mark.parametrize("form", get_args(Form))
def test_a_failed_job_is_told_by_the_error_in_its_log(form):
    put = []
    log = Log(put.append, form=form)
    log.write("loading torch")
    log.write("failed: no model" if form != "bare" else "error: no model", "error")
    log.write("the run's folder holds step 3")
    assert dashboard.brief("\n".join(["exit code 1, last available logs:", *put])) == "exit code 1: no model"


def test_a_run_that_has_ended_has_ended_while_its_job_writes_the_report():
    began = int(1000 * (time.time() - 100))
    found = asked([actor("a", "DEAD")], [job("a", began, "RUNNING")], {"a1": told(state="finished")})["a"]
    assert (found["state"], found["step"], found.get("waiting")) == ("finished", 3, None)


def test_what_an_earlier_job_of_the_name_told_does_not_count():
    began = int(1000 * time.time())
    found = asked([actor("a", "DEAD")], [job("a", began, "PENDING")], {"a1": told(time=time.time() - 100)})["a"]
    assert (found["state"], found["step"]) == ("starting", 0)


def test_a_run_that_is_gone_without_a_goodbye_has_failed():
    logs = {"a1": told(), "b1": told(run="b", state="stopped")}
    found = asked([actor("a", "DEAD"), actor("b", "DEAD"), actor("c", "DEAD")], logs=logs)
    assert (found["a"]["state"], found["a"]["error"]) == ("failed", dashboard.GONE)
    assert found["b"]["state"] == "stopped" and found["c"]["state"] == "failed"


def test_the_controller_that_lives_counts_before_those_that_are_gone():
    actors = [actor("a", "ALIVE", 1), actor("a", "DEAD", 2)]
    assert asked(actors, logs={"a1": told(step=5), "a2": told(step=2)})["a"]["step"] == 5


def test_a_cluster_that_has_not_heard_of_a_run_says_none():
    empty = json.dumps({"result": True, "data": {"result": {"result": []}}})

    def answer(handler):
        return VERSION if "version" in handler.path else (200, "[]" if "jobs" in handler.path else empty)

    with server(answer) as (address, _):
        assert dashboard.look(jobs.Client(address), "a") is None


def test_an_answer_that_is_none_is_an_error():
    with (
        server(lambda handler: VERSION if "version" in handler.path else (500, "sick")) as (address, _),
        pytest.raises(ClusterError, match="answered 500"),
    ):
        dashboard.looks(jobs.Client(address))


def test_a_url_is_its_own_address_and_nobody_is_asked():
    assert dashboard.url_of("http://127.0.0.1:1") == "http://127.0.0.1:1"
