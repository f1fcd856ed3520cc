"""The pool where many are lost at once, or one hangs: no budget is charged for what was nobody's, and nobody waits."""

import pytest

from pcpo_ray.errors import ClusterError
from pcpo_ray.training.scheduling.workers import Start
from tests.training.scheduling.test_pool import pool_of, sent


def test_an_item_is_not_lost_by_those_it_never_reached():
    pool = pool_of(16)
    ticket = pool.submit("a", 0.0)
    assert sent(pool) == [("w-0", ticket)]
    for n in range(8):  # with their machine: all are told of in one look
        pool.died(f"w-{n}", "its node is gone", 10.0)
    assert sent(pool) == [("w-8", ticket)]
    assert pool.retries["lost"] == {"died": 1}
    assert sum("lost a task" in line for line in pool.faults()) == 1


def test_who_died_together_is_replaced_within_a_second():
    pool = pool_of(100)
    for n in range(50):
        pool.died(f"w-{n}", "its node is gone", 10.0)
    assert [action for action in pool.take() if isinstance(action, Start)] == [Start("w-100")]
    pool.tick(11.0)
    assert len([action for action in pool.take() if isinstance(action, Start)]) == 49


def test_deaths_in_a_shrinking_pool_are_counted_by_its_former_size():
    pool = pool_of(100, deaths=10)
    for n in range(60):
        pool.died(f"w-{n}", "its node is gone", 10.0)
    pool.resize(10, 11.0)
    pool.died("w-99", "killed", 12.0)
    ticket = pool.submit("a", 13.0)
    ((worker, _),) = sent(pool)
    assert pool.finished(worker, ticket, 14.0)
    pool.take()
    now = 14.0
    with pytest.raises(ClusterError, match="21 w workers died in a row"):
        while True:
            now += 100.0
            pool.tick(now)
            pool.died(next(iter(pool.workers)), "no such file", now)


def test_others_do_not_wait_behind_an_item_that_the_idle_refused():
    pool = pool_of(2, depth=1)
    first, second, third = (pool.submit(item, 0.0) for item in "abc")
    assert sent(pool) == [("w-0", first), ("w-1", second)]
    assert not pool.refused("w-0", first)
    pool.failed("w-0", first, "cannot be read", 1.0)
    assert sent(pool) == [("w-0", third)]
    assert pool.finished("w-0", third, 2.0) and pool.finished("w-1", second, 3.0)
    assert sent(pool) == [("w-1", first)]


def test_a_refused_item_does_not_wait_for_one_that_hangs():
    pool = pool_of(2, depth=1, hedge=3.0)
    for n in range(6):
        ticket = pool.submit(n, float(n))
        pool.finished(sent(pool)[0][0], ticket, n + 1.0)
    items = [pool.submit(item, 10.0) for item in "ab"]
    (idle, refused), (hangs, held) = sent(pool)
    assert {refused, held} == set(items) and not pool.refused(idle, refused)
    pool.failed(idle, refused, "cannot be read", 11.0)
    pool.tick(12.0)
    assert sent(pool) == []
    pool.tick(14.0)
    assert sent(pool) == [(idle, refused)]
    assert pool.finished(idle, refused, 15.0)
    pool.tick(16.0)
    assert sent(pool) == [(idle, held)] and pool.workers[hangs].held
