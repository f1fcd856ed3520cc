"""What Ray's errors mean for a run, and what an actor keeps open for others to meet; no Ray is started."""

import inspect
import sys
from datetime import timedelta
from typing import Any

import pytest
from ray import exceptions
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from pcpo_ray import config
from pcpo_ray.cluster.actors import LearnerActor
from pcpo_ray.cluster.failures import OF_THE_CALL, is_gone
from pcpo_ray.cluster.launch import room_for
from pcpo_ray.errors import ModelError
from pcpo_ray.process import signals
from tests.support import small

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


def test_a_call_asked_twice_is_done_once_and_a_failed_one_is_repeated(small_sd):
    actor = Scripted(small.run(small_sd), "learner-0", ".", 0)
    actor.outcomes = [1, 2, RuntimeError("no"), 3]
    assert [actor.call(7, "outcome"), actor.call(7, "outcome"), actor.call(8, "outcome")] == [1, 1, 2]
    with pytest.raises(RuntimeError):
        actor.call(9, "outcome")
    assert actor.call(9, "outcome") == 3


def test_what_there_is_room_for_names_each_resource_that_is_short():
    role = config.Role(cpus=0.5, gpus=1, resources={"spot": 1})
    free = {"CPU": 0.25, "GPU": 3.0}
    text = "room for 5; 95 wait for CPU: 0.5 each, 0.25 free, spot: 1 each, 0 free"
    assert room_for(role, 100, 95, free) == text
    assert room_for(role, 5, 0, free) == ""
    assert room_for(role, 100, 95, {"CPU": 0.5, "GPU": 1.0, "spot": 1.0}) == ""  # they get their place at once
