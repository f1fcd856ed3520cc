"""The pool where a rack hangs: its workers fall silent one after the other, and their items do not go round in it."""

import random

from pcpo_ray.training.scheduling.workers import WorkerState
from tests.training.scheduling.test_pool import pool_of, sent


def test_items_of_those_that_hang_do_not_go_round_among_them():
    pool, dice = pool_of(1000), random.Random(0)
    beats = {name: dice.uniform(0.0, 15.0) for name in pool.workers}  # as often as so large a pool is asked
    hangs = {f"w-{n}" for n in range(100)}
    items = {pool.submit(n, 0.0) for n in range(20)}
    assert {name for name, _ in sent(pool)} <= hangs
    for now in range(1, 90):
        for name in [name for name in pool.workers if now >= beats.get(name, 0.0) and name not in hangs]:
            beats[name] = now + 15.0
            pool.heard(name, now)
        for name in hangs & pool.workers.keys():
            if beats[name] <= 15.0 and now == int(beats[name]):  # its last sign of life
                pool.heard(name, now)
        pool.tick(now)
        for name, ticket in sent(pool):
            if name not in hangs:
                assert pool.finished(name, ticket, now)
                items.remove(ticket)
    assert not items and not hangs & pool.workers.keys()
    assert pool.retries["lost"]["silent"] <= 20  # some are hedged before


def test_a_worker_heard_of_again_is_given_items_again():
    pool = pool_of(1, silence=60.0)
    pool.tick(31.0)
    ticket = pool.submit("a", 31.0)
    assert sent(pool) == []
    pool.forgive(20.0)
    pool.heard("w-0", 52.0)
    pool.tick(52.0)
    assert sent(pool) == [("w-0", ticket)] and pool.workers["w-0"].state is WorkerState.READY
