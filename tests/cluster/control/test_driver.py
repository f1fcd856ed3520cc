"""The driver's and the clients' ends: requests reach a run once, and its last status reaches those who wait for it."""

import os
import signal
import threading
import time

import pytest
import ray

from pcpo_ray.cluster.connect import connect
from pcpo_ray.cluster.control import driver
from pcpo_ray.cluster.control.client import Caller
from pcpo_ray.cluster.control.driver import DriverControl
from pcpo_ray.data.requests import Request
from pcpo_ray.errors import ClusterError, EndedError, StopAskedError
from tests.support import small

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300), pytest.mark.usefixtures("cluster")]


@pytest.fixture
def control(request):
    found = DriverControl(request.node.name, {"state": "starting", "step": 0})
    yield found
    found.close()


def caller_of(control):
    return Caller(control.run, ray.get_runtime_context().gcs_address)


def taken(control, status, limit=30.0):
    """What the driver is handed in the end."""
    deadline = time.monotonic() + limit
    while not (found := control.exchange(status)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def test_a_run_says_something_from_the_start_on_and_how_long_ago(control):
    found = caller_of(control).status()
    assert (found["state"], found["step"]) == ("starting", 0)
    assert 0 <= found["age"] < 60


def test_requests_are_taken_once_and_in_their_order(control):
    caller = caller_of(control)
    asked = [Request(samplers=2), Request(stop=True)]
    for request in asked:
        caller.ask(request)
    assert taken(control, {"step": 1}) == asked
    for _ in range(20):
        assert control.exchange({"step": 2}) == []
        time.sleep(0.05)
    assert caller.status()["step"] == 2


def test_waiting_in_vain_is_an_error_with_the_last_status(control):
    with pytest.raises(ClusterError, match=r"waited 1 s for the moon; .* is at step 0, starting"):
        caller_of(control).wait(lambda found: False, 1.0, "the moon")


@pytest.mark.timeout(150)
def test_the_end_is_held_for_those_who_watch_and_for_nobody_else(control, monkeypatch):
    monkeypatch.setattr(driver, "FAREWELL", 200.0)  # so long would it take where it waited for nobody
    control.exchange({"step": 1})
    control.end({"state": "finished"})
    caller = caller_of(control)
    caller.status()
    ending = threading.Thread(target=control.end, args=({"state": "stopped", "step": 7},))
    ending.start()
    assert caller.wait(lambda found: found["state"] == "stopped", 60, "the end")["step"] == 7
    ending.join(timeout=60.0)
    assert not ending.is_alive()


def test_a_run_that_is_gone_is_told_from_one_that_does_not_answer(control, monkeypatch):
    caller = caller_of(control)
    pid = ray.get(control.actor.__ray_call__.remote(lambda self: os.getpid()), timeout=30)
    monkeypatch.setattr("pcpo_ray.cluster.control.client.ANSWER", 1.0)
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(ClusterError, match="did not answer for 1 s"):
        caller.status()
    os.kill(pid, signal.SIGKILL)
    monkeypatch.setattr("pcpo_ray.cluster.control.client.ANSWER", 30.0)
    with pytest.raises(EndedError, match="has ended"):
        caller.status()
    deadline = time.monotonic() + 60  # the driver's next words start another
    while True:
        control.exchange({"step": 9})
        try:
            if caller_of(control).status()["step"] == 9:
                break
        except ClusterError:
            assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_name_that_is_taken_is_an_error_before_any_worker_starts(small_sd, control):
    run = small.run(small_sd, name=control.run)
    before = len(ray.util.list_named_actors(all_namespaces=True))
    with pytest.raises(ClusterError, match=f"a run named '{control.run}' is going on in this cluster; stop it"):
        connect(run, announced=True)
    assert len(ray.util.list_named_actors(all_namespaces=True)) == before
    assert ray.available_resources()["CPU"] == ray.cluster_resources()["CPU"]


def starting(run, ended):
    """A thread in which a run starts; what ends it goes into a list."""

    def start():
        try:
            connect(run, announced=True)
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    return thread


def caller_of_waiting():
    """A client of the run `waiting`, once that can be talked to."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return Caller("waiting", ray.get_runtime_context().gcs_address)
        except ClusterError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_a_run_that_waits_for_its_workers_stops_when_it_is_asked_to(small_sd):
    run = small.run(small_sd, name="waiting", workers__samplers="{cpus: 40}", workers__start_timeout=120)
    ended = []
    thread = starting(run, ended)
    caller = caller_of_waiting()
    caller.ask(Request(stop=True))
    assert caller.wait(lambda found: found["state"] == "stopped", 60, "the end")["step"] == 0
    thread.join(timeout=60)
    assert [type(error) for error in ended] == [StopAskedError]


def test_a_run_in_a_cluster_too_small_says_so_while_it_waits(small_sd):
    run = small.run(small_sd, name="waiting", workers__samplers="{cpus: 40}", workers__start_timeout=20)
    ended = []
    thread = starting(run, ended)
    try:
        caller = caller_of_waiting()
        found = caller.wait(lambda found: "too small" in found["waiting"], 15, "the reason")
    finally:
        thread.join(timeout=90)
    assert (found["state"], found["samplers"]["wanted"], found["samplers"]["ready"]) == ("starting", 1, 0)
    assert "CPU: asked for 40.2, the cluster has 4" in found["waiting"]
    assert isinstance(ended[0], ClusterError) and "not ready after 20 s" in str(ended[0])
    deadline = time.monotonic() + 30
    with pytest.raises(EndedError):
        while time.monotonic() < deadline:  # Ray lets an actor answer for a moment after it was told to end it
            caller.status()
            time.sleep(0.1)
