"""Errors on their way from a worker to the driver: what they say arrives, and who is blamed for them."""

import importlib
import pickle
import pkgutil
import types

import pytest
import ray
from ray import exceptions

import pcpo_ray
from pcpo_ray import errors
from pcpo_ray.cluster import failures, pulling
from pcpo_ray.cluster import pool as pools
from pcpo_ray.rewards.http_client import RefusedError

APART = ("pcpo_ray.commands", "pcpo_ray.cluster", "pcpo_ray.__main__")
"""Rooms whose errors stay in the process that raises them."""


def classes():
    for module in pkgutil.walk_packages(pcpo_ray.__path__, "pcpo_ray."):
        if not module.name.startswith(APART):
            importlib.import_module(module.name)
    found = [errors.PcpoError]
    for one in found:
        found += [below for below in one.__subclasses__() if below not in found]
    return [one for one in found if not one.__module__.startswith(APART)]


def test_every_error_of_ours_travels_with_its_text():
    found = classes()
    assert RefusedError in found and len(found) > 10
    for one in found:
        travelled = pickle.loads(pickle.dumps(one("what is wrong")))
        assert (type(travelled), str(travelled)) == (one, "what is wrong")
    assert pickle.loads(pickle.dumps(RefusedError("no", 401))).status == 401


class TwoArgumentsError(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def test_an_error_that_does_not_unpickle_is_no_death_and_keeps_its_text():
    text = 'Traceback (most recent call last):\n  File "mine.py", line 1\nmine.TwoArgumentsError: this and that\n'
    raised = exceptions.RayTaskError("score", text, TwoArgumentsError("this", "that"))
    arrived = exceptions.RayError.from_bytes(raised.to_bytes())
    assert isinstance(arrived, exceptions.UnserializableException)
    assert not failures.is_gone(arrived) and failures.brief(arrived) == "mine.TwoArgumentsError: this and that"


def test_weights_that_come_too_late_are_not_taken_for_gone(monkeypatch):
    def late(*given, **options):
        raise exceptions.GetTimeoutError("after 600 s")

    monkeypatch.setattr(ray, "get", late)
    with pytest.raises(TimeoutError, match="weights of version 3 did not arrive"):
        pulling.pulled_weights(3, [None])


class Answer:
    def __init__(self, item):
        self.item = item


class OutOfReach:
    """Ray, and a lent actor whose answers are lost until `left` is used up."""

    ObjectRef = object

    def __init__(self, left):
        self.left, self.asked = left, []

    def sample(self, item):
        self.asked.append(item)
        return Answer(item)

    def wait(self, references, num_returns, timeout):
        return list(references), []

    def get(self, reference):
        if self.left:
            self.left -= 1
            raise exceptions.ActorUnavailableError("out of reach", None)
        return reference.item


def test_a_lent_actor_out_of_reach_is_asked_again_and_blamed_for_nothing(monkeypatch):
    clock, ended, rank = [0.0], [], OutOfReach(10)
    monkeypatch.setattr(pools, "ray", rank)
    monkeypatch.setattr(pools, "end", ended.extend)
    monkeypatch.setattr(pools, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))
    pool = pools.WorkerPool(
        "sampler",
        lambda name: None,
        lambda actor, item: (actor.sample(item), lambda value: value),
        workers=0,
        silence=60.0,
    )
    pool.lend({"learner-0": rank})
    pool.submit("a")
    pool.submit("b")
    done = []
    while len(done) < 2 and clock[0] < 60:
        done += pool.collect()
        clock[0] += 1.0
    assert sorted(done) == ["a", "b"] and pool.collect() == []
    assert len(rank.asked) == 12 and not ended and pool.faults() == []
