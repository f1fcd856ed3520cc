"""The Jobs API is asked with deadlines; whatever answers, or does not, is an error that says what to do."""

import json
import os
import threading
from types import SimpleNamespace

import pytest

from pcpo_ray.cluster.control import jobs
from pcpo_ray.errors import ClusterError
from tests.support.dashboard import VERSION, job, server


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(jobs, "CONNECT", 1.0)
    monkeypatch.setattr(jobs, "ANSWER", 1.0)


@pytest.mark.parametrize("address", ["auto", "127.0.0.1:6379", "ray://127.0.0.1:10001"])
def test_an_address_that_is_not_of_a_dashboard_is_refused(address):
    with pytest.raises(ClusterError, match=r"expected that of Ray's dashboard, http://HEAD:8265"):
        jobs.Client(address)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((401, "Unauthorized"), "wants a token; set RAY_AUTH_MODE=token"),
        ((403, "Forbidden"), "refuses this token; set RAY_AUTH_MODE=token"),
        ((404, "what?"), "is no dashboard of Ray"),
        ((200, "<html>"), "is no dashboard of Ray"),
        ((200, "{}"), "is no dashboard of Ray"),
        ((500, "broken"), "is no dashboard of Ray: 500 Server Error"),
    ],
)
def test_what_is_no_dashboard_or_wants_a_token_is_told_apart(answer, words):
    with server({"/api/version": answer}) as (address, _), pytest.raises(ClusterError, match=words) as error:
        jobs.Client(address)
    assert address in str(error.value)


def test_nobody_there_and_nobody_answering_are_errors_within_the_deadline():
    with server({}) as (address, _):
        pass
    with pytest.raises(ClusterError, match=r"no Ray dashboard at .*Connection refused"):
        jobs.Client(address)

    given_up = threading.Event()

    def silent(handler):
        given_up.wait(60)
        return VERSION

    with server(silent) as (address, _):
        with pytest.raises(ClusterError, match=r"the server at .* was silent for 1 s: a Ray dashboard that is busy"):
            jobs.Client(address, answer=1.0)
        given_up.set()


def test_the_address_given_counts_and_not_that_of_the_environment(monkeypatch):
    for name in jobs.OVERRIDING:
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with server({"/api/version": VERSION}) as (address, seen):
        assert jobs.Client(address).get_address() == address
    assert seen and os.environ["RAY_ADDRESS"] == "http://127.0.0.1:1"


def test_the_jobs_of_a_run_are_found_the_newest_last():
    listed = [job("b", 3, "RUNNING"), job("a", 2, "SUCCEEDED"), job("a", 1, "FAILED"), job("", 4, "RUNNING")]
    with server({"/api/version": VERSION, "/api/jobs/": (200, json.dumps(listed))}) as (address, _):
        client = jobs.Client(address)
        assert [found.submission_id for found in jobs.of(client, "a")] == ["a-1", "a-2"]
        assert jobs.runs(client) == ["a", "b"]


def test_an_answer_that_is_an_error_is_passed_on():
    with server({"/api/version": VERSION, "/api/jobs/": (500, "Traceback: the head is sick")}) as (address, _):
        client = jobs.Client(address)
        with pytest.raises(ClusterError, match="answered 500: Traceback: the head is sick"):
            client.list_jobs()


def test_an_agent_that_is_not_there_yet_is_waited_for_but_not_for_ever(monkeypatch):
    answers = [(500, f"Traceback: {jobs.NO_AGENT} to submit job, try again later.")] * 2 + [(200, "[]")]

    def answer(handler):
        return VERSION if handler.path == "/api/version" else answers.pop(0) if len(answers) > 1 else answers[0]

    with server(answer) as (address, _):
        client = jobs.Client(address)
        assert client.list_jobs() == [] and len(answers) == 1
        answers[:] = [(500, jobs.NO_AGENT)]
        monkeypatch.setattr(jobs, "AGENT", 0.5)
        with pytest.raises(ClusterError, match=f"500: {jobs.NO_AGENT}; .* start the head with --dashboard-agent-"):
            client.list_jobs()


@pytest.mark.parametrize(("port", "takes"), [(-1, False), (52365, True), (None, True)])
def test_a_head_whose_agent_could_not_listen_is_told_before_an_upload(port, takes):
    head = {"isHeadNode": True} if port is None else {"isHeadNode": True, "dashboardAgentListenPort": port}
    nodes = [{"raylet": {"isHeadNode": False, "dashboardAgentListenPort": -1}}, {"raylet": head}]
    summary = (200, json.dumps({"data": {"summary": nodes}}))
    with server({"/api/version": VERSION, "/nodes?view=summary": summary}) as (address, _):
        client = jobs.Client(address)
        if takes:
            jobs.check_agent(client)
        else:
            with pytest.raises(ClusterError, match=r"takes no jobs; .* start the head with --dashboard-agent-"):
                jobs.check_agent(client)


@pytest.mark.parametrize("answer", [(404, ""), (200, "<html>"), (200, "[]"), (200, '{"data": null}')])
def test_a_dashboard_that_says_nothing_of_agents_passes(answer):
    with server({"/api/version": VERSION, "/nodes?view=summary": answer}) as (address, _):
        jobs.check_agent(jobs.Client(address))


def ended(**found):
    return SimpleNamespace(
        **{"status": "FAILED", "submission_id": "a-1", "message": "", "driver_exit_code": 1, **found}
    )


def test_a_failed_job_is_an_error_with_rays_message_and_a_hint():
    jobs.check_done(ended(status="SUCCEEDED"))
    with pytest.raises(ClusterError, match=r"job a-1 is FAILED: the node died$"):
        jobs.check_done(ended(message="the node died"))
    with pytest.raises(ClusterError, match="install pcpo_ray into the Python of the cluster's machines"):
        jobs.check_done(ended(driver_exit_code=127))
    with pytest.raises(
        ClusterError, match=r"137; it was killed, by hand or as memory ran out; continue with: pcpo-ray"
    ):
        jobs.check_done(ended(message="code 137", driver_exit_code=137, metadata={jobs.AGAIN: "pcpo-ray submit a"}))


def test_rays_own_lines_are_taken_out_of_a_commands_answer():
    text = (
        "2026-11-24 15:43:12,965\tINFO job_manager.py:581 -- Runtime env is setting up.\n"
        "Running entrypoint for job raysubmit_1: pcpo-ray status spot\n"
        "run        spot: training\nRunning late\n"
    )
    assert jobs.PREAMBLE.sub("", text) == "run        spot: training\nRunning late\n"
