"""What Ray's errors mean for a run, and what an actor keeps open for others to meet; no Ray is started."""

import inspect
import subprocess
import sys
import threading
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from ray import exceptions
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from pcpo_ray import config
from pcpo_ray.cluster import launch
from pcpo_ray.cluster.failures import OF_THE_CALL, is_gone
from pcpo_ray.cluster.launch import room_for
from pcpo_ray.cluster.learner_actor import LearnerActor
from pcpo_ray.errors import ClusterError, ModelError
from pcpo_ray.process import signals
from pcpo_ray.workers.learner import distributed
from tests.support import faults, small
from tests.support.processes import ENVIRONMENT

EVERY = [kind for _, kind in inspect.getmembers(exceptions, inspect.isclass) if issubclass(kind, exceptions.RayError)]


@pytest.fixture(autouse=True)
def not_an_actors_process(monkeypatch):
    """An actor makes the process it starts in its own; here other tests follow."""
    monkeypatch.setattr(signals, "_elsewhere", signals._elsewhere)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(".")


@pytest.mark.parametrize("kind", EVERY)
def test_any_error_of_ray_but_those_of_a_call_means_the_actor_is_gone(kind):
    error = kind.__new__(kind)
    assert is_gone(error) is not issubclass(kind, OF_THE_CALL)


def test_an_actor_killed_for_memory_is_gone_and_a_call_that_failed_is_not():
    assert is_gone(exceptions.OutOfMemoryError("the node was running low on memory"))
    assert is_gone(exceptions.ActorDiedError()) and is_gone(exceptions.NodeDiedError("gone"))
    assert not is_gone(exceptions.ActorUnavailableError("the connection broke", None))
    assert not is_gone(ModelError("not of Ray"))


def test_the_ranks_meeting_stays_open_while_weights_are_sent_repeatedly(small_sd):
    actor = LearnerActor(small.run(small_sd), "learner-0", ".", 0)
    ranks = TCPStore(*actor.meet("ranks"), timeout=timedelta(seconds=5))
    ranks.set("rank 0", "here")
    places = {actor.meet("weights") for _ in range(3)}
    assert len(places) == 3
    ranks.set("rank 1", "here")  # NCCL comes here at the first collective, after the first broadcast
    assert ranks.get("rank 0") == b"here"


class Scripted(LearnerActor):
    """Gives what it is told to give, one after the other."""

    outcomes: Any = ()

    def outcome(self):
        found = self.outcomes.pop(0)
        if isinstance(found, Exception):
            raise found
        return found


def test_a_head_that_is_gone_holds_up_nobody_who_asks_it_for_places(small_sd, monkeypatch):
    gone = threading.Event()
    for name in ("placement_group", "remove_placement_group"):
        monkeypatch.setattr(launch, name, lambda *_, **more: gone.wait())
    monkeypatch.setattr(launch, "RESERVED", 0.1)
    monkeypatch.setattr(launch, "GIVEN_BACK", 0.1)
    run = small.run(small_sd, workers__learner="{ranks: 2}")
    with pytest.raises(ClusterError, match=r"did not answer for 0.1 s, when asked for the learner's places"):
        launch.Launcher(run=run).reserve(run.workers.learner)
    launch.Placement(object()).close()
    gone.set()


def test_a_head_that_is_gone_holds_up_nobody_who_asks_it_for_an_actor(small_sd, monkeypatch):
    gone = threading.Event()
    made = SimpleNamespace(options=lambda **options: SimpleNamespace(remote=lambda *arguments: gone.wait()))
    monkeypatch.setattr(ray, "remote", lambda **options: lambda cls: made)
    monkeypatch.setattr(launch, "MADE", 0.1)
    run = small.run(small_sd)
    with pytest.raises(ClusterError, match=r"did not answer for 0.1 s, when asked for scorer-0"):
        launch.Launcher(run=run).make(LearnerActor, run.workers.scorers, "scorer-0")
    gone.set()


def test_no_fault_of_a_test_before_is_planned_when_one_begins(request):
    faults.plan("run", "learner", "update", "kill")
    request.getfixturevalue("faulty_workers")
    assert faults.left("run") == []


def test_a_call_asked_twice_is_done_once_also_one_that_failed(small_sd):
    actor = Scripted(small.run(small_sd), "learner-0", ".", 0)
    actor.outcomes = [1, 2, RuntimeError("no"), 3]
    assert [actor.call(7, "outcome"), actor.call(7, "outcome"), actor.call(8, "outcome")] == [1, 1, 2]
    for _ in range(2):  # an update that failed in its midst must not begin anew, by a batch that is gone
        with pytest.raises(RuntimeError, match="no"):
            actor.call(9, "outcome")
    assert actor.call(10, "outcome") == 3


def test_ranks_that_are_asked_twice_to_start_meet_once(small_sd, monkeypatch):
    joined: list[int] = []

    def join(**how):
        joined.append(how["index"])
        return distributed.Rank()

    monkeypatch.setattr(distributed, "join", join)
    actor = LearnerActor(small.run(small_sd), "learner-0", ".", 0)
    monkeypatch.setattr(actor, "start", lambda: (1, "node"))
    monkeypatch.setattr(actor, "setup_device", lambda role: torch.device("cpu"))  # it would hide this process's GPUs
    assert [actor.call(2, "start_with", ("here", 1)) for _ in range(2)] == [(1, "node")] * 2
    assert joined == [0]


def test_what_there_is_room_for_names_each_resource_that_is_short():
    role = config.Role(cpus=0.5, gpus=1, resources={"spot": 1})
    free = {"CPU": 0.25, "GPU": 3.0}
    text = "room for 5; 95 wait for CPU: 0.5 each, 0.25 free, spot: 1 each, 0 free"
    assert room_for(role, 100, 95, free) == text
    assert room_for(role, 5, 0, free) == ""
    assert room_for(role, 100, 95, {"CPU": 0.5, "GPU": 1.0, "spot": 1.0}) == ""  # they get their place at once


def test_a_folder_of_rays_with_too_long_a_name_is_told_of_with_the_cure(tmp_path):
    """Of Ray itself, in a process of its own: it makes no socket."""
    script = "from pcpo_ray.cluster import connect; connect._start_local()"
    found = subprocess.run(
        [sys.executable, "-c", script],
        env={**ENVIRONMENT, "RAY_TMPDIR": str(tmp_path / ("long" * 25))},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert found.returncode == 1
    assert "ClusterError: Ray cannot be started on this machine: " in found.stderr
    assert "AF_UNIX path length cannot exceed" in found.stderr
    assert "set RAY_TMPDIR to a folder with a short name, such as /tmp" in found.stderr
