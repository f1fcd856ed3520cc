"""The pool on Ray, with workers that sleep: deaths are seen and made up for at once."""

import os
import signal
import time

import pytest
import ray

from pcpo_ray.cluster.pool import WorkerPool
from pcpo_ray.errors import ClusterError
from tests.support.sleeper import launch

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300), pytest.mark.usefixtures("cluster")]


def pool_of(workers, *, seconds=0.0, fate=lambda item, attempt: "", silence=30.0):
    attempts = {}

    def send(actor, item):
        attempts[item] = attempts.get(item, 0) + 1
        return actor.work.remote(item, seconds, fate(item, attempts[item])), lambda value: value

    pool = WorkerPool("sleeper", launch, send, workers=workers, silence=silence)
    pumped(pool, lambda found: pool.status().ready == workers)
    return pool


def pumped(pool, done, limit=120.0):
    """Results until `done(results)`."""
    results, deadline = [], time.monotonic() + limit
    while not done(results):
        assert time.monotonic() < deadline, f"{len(results)} results, {pool.status()}"
        ray.wait(pool.references(), timeout=0.5)
        results += pool.collect()
    return results


def pid_of(pool, worker):
    return ray.get(pool.actors[worker].alive.remote(0.0), timeout=30)[0]


def test_a_killed_workers_item_is_at_work_elsewhere_before_silence_counts():
    pool = pool_of(2, seconds=1.0, silence=600.0)
    pid = pid_of(pool, "sleeper-0")
    for item in range(2):
        pool.submit(item)
    (call,) = [call for call in pool.calls.values() if call.worker == "sleeper-0"]
    os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    while not any(other.item == call.item and other.worker != "sleeper-0" for other in pool.calls.values()):
        assert time.monotonic() - killed < 60.0
        ray.wait(pool.references(), timeout=0.1)
        pool.collect()
    pool.close()


def test_items_that_kill_their_first_worker_are_done_once_by_another():
    fates = {3: "die", 7: "fail", 17: "die"}
    pool = pool_of(3, fate=lambda item, attempt: fates.get(item, "") if attempt == 1 else "")
    for item in range(20):
        pool.submit(item)
    faults = []

    def settled(found):
        """Another worker may have done an item again before its first worker's death is told."""
        faults.extend(pool.faults())
        return len(found) >= 20 and pool.status().ready == 3 and any("is gone" in line for line in faults)

    assert sorted(pumped(pool, settled)) == list(range(20))
    assert len([line for line in faults if "is gone" in line]) <= 2  # both deadly items may be with one worker
    pool.close()


def test_an_item_that_kills_every_worker_ends_it():
    pool = pool_of(2, fate=lambda item, attempt: "die")
    pool.submit("deadly")
    with pytest.raises(ClusterError, match="lost 5 times"):
        pumped(pool, lambda found: False)
    pool.close()


def test_a_worker_that_hangs_is_given_up_and_replaced():
    pool = pool_of(1, silence=5.0)
    os.kill(pid := pid_of(pool, "sleeper-0"), signal.SIGSTOP)
    pool.submit("late")
    assert pumped(pool, lambda found: len(found) == 1) == ["late"]
    assert "it was silent for" in "".join(pool.faults())
    with pytest.raises(ProcessLookupError):
        for _ in range(100):
            os.kill(pid, 0)
            time.sleep(0.1)
    pool.close()


def test_what_was_cancelled_is_not_collected():
    pool = pool_of(1, seconds=0.5)
    for item in range(3):
        pool.submit(item)
    pool.cancel()
    pool.submit("new")
    assert pumped(pool, lambda found: found) == ["new"]
    pool.close()


def test_a_pool_grows_to_four_at_work_and_shrinks_without_losing_an_item():
    pool = pool_of(1, seconds=0.25)
    submitted = 0

    def at_work(found, *, ready):
        """Tell whether so many are; there is always more to do for as many again."""
        nonlocal submitted
        while submitted - len(results) - len(found) < 8:
            pool.submit(submitted)
            submitted += 1
        return pool.status().ready == ready and len({call.worker for call in pool.calls.values()}) == ready

    results = []
    results += pumped(pool, lambda found: at_work(found, ready=1) and len(found) >= 4)
    pool.resize(4)
    results += pumped(pool, lambda found: at_work(found, ready=4))
    pool.resize(2)
    results += pumped(pool, lambda found: len(results) + len(found) == submitted)
    assert sorted(results) == list(range(submitted))
    assert pool.status().wanted == 2
    pool.close()
