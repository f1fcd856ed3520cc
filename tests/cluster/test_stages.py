"""The pools of the stages, with actors that are never made: what a role's kind of work changes in them."""

import math
from types import SimpleNamespace

import pytest
import ray

from pcpo_ray.cluster.stages import RayScorers
from pcpo_ray.errors import ClusterError
from tests.support import small

REMOTE = "{kind: remote, url: 'http://127.0.0.1:1/'}"
JUDGE = "{kind: judge, url: 'http://127.0.0.1:1/v1', model: some}"


class Launcher:
    """Makes actors whose first sign of life is never looked for."""

    def __init__(self, run):
        self.run, self.answers, self.made = run, lambda: True, []

    def make(self, cls, role, name, *more, **options):
        if not self.answers():
            raise ClusterError("the head of the Ray cluster did not answer")
        self.made.append(name)
        return SimpleNamespace(alive=SimpleNamespace(remote=lambda seconds: object()))


def scorers(model, **changes):
    """The scorers of a run, two of them ready; their pool is asked with the times that a test gives."""
    found = RayScorers(Launcher(small.run(model, workers__scorers__workers=2, **changes)))
    for name in list(found.pool.workers):
        found.pool.heard(name, 0.0)
        found.pool.ready(name, 0.0)
    found.pool.take()
    return found.pool


def test_a_silent_scorer_is_told_of_with_its_rewards_and_what_may_help(small_sd):
    rewards = "[{kind: 'tests.support.custom:Redness'}, {kind: jpeg_compressibility}]"
    pool = scorers(small_sd, rewards=rewards, workers__silence_timeout=5)
    pool.tick(6.0)
    for line in pool.faults():
        assert "it was silent for 6 s (workers.silence_timeout=5); a reward (Redness, jpeg_compressibility)" in line
        assert "that holds Python's lock" in line and "raise workers.silence_timeout" in line
    assert pool.restarts["silent"] == 2


@pytest.mark.parametrize("known", [True, False])
def test_while_the_head_does_not_answer_no_worker_is_made(small_sd, monkeypatch, known):
    monkeypatch.setattr(ray, "kill", lambda actor, no_restart: None)
    monkeypatch.setattr(ray, "wait", lambda waited, num_returns, timeout: ([], waited))
    launcher, gone = Launcher(small.run(small_sd, workers__scorers__workers=2)), ["for a while"]
    pool = RayScorers(launcher)
    launcher.answers = lambda: not gone
    if known:  # else it has answered a moment ago
        pool.answers = launcher.answers
    pool.resize(5)
    pool.resize(3)
    pool.collect()
    assert len(launcher.made) == 2 and pool.status().unplaced == 3
    gone.clear()
    pool.collect()
    assert pool.actors.keys() == pool.pool.workers.keys() == set(pool.beats.values()) and len(pool.actors) == 3
    assert len(launcher.made) == len(set(launcher.made)) and not pool.unmade


@pytest.mark.parametrize(
    ("silence", "actors", "seconds"), [(60, 2, 2.0), (60, 200, 4.0), (60, 5_000, 15.0), (4, 2, 1.0), (1, 5_000, 0.25)]
)
def test_a_sign_of_life_is_asked_for_before_its_lack_is_silence(small_sd, silence, actors, seconds):
    pool = RayScorers(Launcher(small.run(small_sd, workers__silence_timeout=silence)))
    pool.actors = {f"scorer-{n}": None for n in range(actors)}
    assert pool._pace() == seconds


@pytest.mark.parametrize(
    ("changes", "twice"),
    [
        ({}, True),
        ({"rewards": f"[{REMOTE}]"}, False),
        ({"rewards": f"[{JUDGE}]"}, False),
        ({"rewards": f"[{{kind: jpeg_compressibility}}, {REMOTE}]"}, False),
        ({"evaluation__rewards": f"[{JUDGE}]"}, False),
    ],
)
def test_what_a_server_scores_is_not_asked_for_twice(small_sd, changes, twice):
    pool, now = scorers(small_sd, **changes, workers__silence_timeout=10_000), 0.0
    for item in range(12):  # so that the pool knows how long an item takes
        ticket = pool.submit(item, now)
        (sent,) = pool.take()
        now += 1.0
        pool.finished(sent.worker, ticket, now)
    pool.submit("late", now)
    assert len(pool.take()) == 1
    pool.tick(now + 100.0)
    assert len(pool.take()) == twice
    assert (pool.limits.hedge == math.inf) is not twice
