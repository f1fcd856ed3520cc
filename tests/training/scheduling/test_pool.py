"""The pool's decisions: each item once, whatever happens to the workers."""

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcpo_ray.errors import ClusterError
from pcpo_ray.training.scheduling.pool import Pool
from pcpo_ray.training.scheduling.workers import Limits, Send, Start, Stop, WorkerState
from tests.support.simulated import Workers


def pool_of(count, **limits):
    pool = Pool("w", Limits(**limits))
    pool.resize(count, 0.0)
    for action in pool.take():
        pool.ready(action.worker, 0.0)
    return pool


def sent(pool):
    return [(action.worker, action.ticket) for action in pool.take() if isinstance(action, Send)]


def test_an_item_goes_to_the_least_busy_worker_up_to_its_depth():
    pool = pool_of(2, depth=2)
    for item in "abcde":
        pool.submit(item, 0.0)
    assert sent(pool) == [("w-0", 1), ("w-1", 2), ("w-0", 3), ("w-1", 4)]
    assert pool.finished("w-1", 2, 1.0)
    assert sent(pool) == [("w-1", 5)]


def test_items_of_a_dead_worker_go_to_another_and_it_is_replaced():
    pool = pool_of(2)
    pool.submit("a", 0.0)
    assert sent(pool) == [("w-0", 1)]
    pool.died("w-0", "SIGKILL", 1.0)
    actions = pool.take()
    assert Start("w-2") in actions and Send("w-1", 1, "a") in actions
    assert any("lost a task" in line for line in pool.faults())


def test_who_dies_before_being_given_what_another_held_is_given_nothing():
    pool = pool_of(3, depth=1)
    ticket = pool.submit("a", 0.0)
    assert sent(pool) == [("w-0", ticket)]
    pool.died("w-0", "its node is gone", 1.0)
    pool.died("w-1", "its node is gone", 1.0)
    assert [action for action in pool.take() if isinstance(action, Send)] == [Send("w-2", ticket, "a")]


def test_a_shrinking_pool_lets_the_leaving_finish():
    pool = pool_of(3, depth=1)
    for item in "ab":
        pool.submit(item, 0.0)
    assert sent(pool) == [("w-0", 1), ("w-1", 2)]
    pool.resize(1, 1.0)
    assert pool.take() == [Stop("w-2")]
    leaving = next(name for name, worker in pool.workers.items() if worker.state is WorkerState.DRAINING)
    pool.submit("c", 1.0)
    assert not pool.take()
    ticket = {"w-0": 1, "w-1": 2}[leaving]
    assert pool.finished(leaving, ticket, 2.0)
    assert pool.take() == [Stop(leaving)]


def test_a_growing_pool_uses_the_new_as_soon_as_they_are_ready():
    pool = pool_of(1, depth=1)
    for item in "ab":
        pool.submit(item, 0.0)
    pool.take()
    pool.resize(2, 1.0)
    assert pool.take() == [Start("w-1")]
    pool.ready("w-1", 2.0)
    assert sent(pool) == [("w-1", 2)]


def test_a_worker_that_keeps_failing_is_replaced_and_its_item_retried():
    pool = pool_of(2, depth=1, strikes=2)
    pool.submit("a", 0.0)
    ((worker, ticket),) = sent(pool)
    pool.failed(worker, ticket, "CUDA error", 1.0)
    again = sent(pool)
    assert again[0][1] == ticket
    pool.failed(again[0][0], ticket, "CUDA error", 2.0)
    failing = again[0][0]
    third = pool.take()
    if failing == worker:
        assert Stop(worker) in third and any(isinstance(action, Start) for action in third)


def test_an_item_that_is_lost_too_often_ends_it_with_every_cause():
    pool = pool_of(4, depth=1, attempts=3)
    pool.submit("a", 0.0)
    for time in (1.0, 2.0):
        ((worker, _),) = sent(pool)
        pool.died(worker, f"signal {time:.0f}", time)
    ((worker, _),) = sent(pool)
    with pytest.raises(ClusterError, match=r"lost 3 times.*signal 1.*signal 2.*signal 3"):
        pool.died(worker, "signal 3", 3.0)


def test_workers_that_die_while_starting_are_replaced_with_backoff():
    pool = Pool("w", Limits(deaths=5))
    pool.resize(1, 0.0)
    starts, now = [], 0.0
    with pytest.raises(ClusterError, match=r"died in a row.*no such file"):
        while now < 1000:
            for action in pool.take():
                starts.append(now)
                pool.died(action.worker, "no such file", now)
            now += 0.5
            pool.tick(now)
    assert len(starts) == 5 + 1 + 1  # so many deaths, one for each that is wanted, and one too many
    gaps = [later - earlier for earlier, later in itertools.pairwise(starts)]
    assert gaps == sorted(gaps) and gaps[-1] >= 8.0


def test_who_takes_a_lost_workers_place_and_hedges_are_notes():
    pool = pool_of(3, depth=1, hedge=3.0)
    pool.died("w-1", "killed", 5.0)
    assert pool.faults() == ["w-1 is gone: killed"] and pool.notes() == []
    pool.tick(6.0)
    pool.died("w-3", "killed too", 8.0)  # the one that was to replace it: the place is empty since 5 s
    pool.tick(12.0)
    pool.ready("w-4", 14.0)
    assert pool.notes() == [("recovered", "w-4 in place of w-1 after 9 s")] and pool.notes() == []
    pool.resize(4, 20.0)
    pool.ready("w-5", 21.0)  # one more, in nobody's place
    assert pool.notes() == []
    pool.faults()
    for number in range(5):
        pool.submit(str(number), 30.0)
        ((worker, ticket),) = sent(pool)
        pool.finished(worker, ticket, 31.0)
    pool.submit("slow", 40.0)
    ((worker, _),) = sent(pool)
    pool.tick(44.0)
    ((other, _),) = sent(pool)
    assert pool.notes() == [("note", f"{worker} takes long over a task (4.0 s); {other} is asked too")]
    assert pool.faults() == []


def test_a_worker_that_is_silent_is_given_up():
    pool = pool_of(2, depth=1, silence=10.0)
    pool.submit("a", 0.0)
    ((worker, ticket),) = sent(pool)
    other = "w-1" if worker == "w-0" else "w-0"
    pool.heard(other, 9.0)
    pool.tick(11.0)
    assert pool.take() == [Start("w-2"), Send(other, ticket, "a"), Stop(worker)]


def test_the_message_about_a_silent_worker_names_limit_and_likely_cause():
    pool = Pool("scorer", Limits(depth=1, silence=10.0), "; a reward (Red) may hold Python's lock")
    pool.resize(1, 0.0)
    pool.ready("scorer-0", 0.0)
    pool.tick(11.0)
    expected = (
        "scorer-0 is gone: it was silent for 11 s (workers.silence_timeout=10); a reward (Red) may hold Python's lock"
    )
    assert pool.faults() == [expected]


def test_a_worker_may_wait_for_a_place_and_then_must_start_in_time():
    pool = Pool("w", Limits(silence=10.0, start=60.0))
    pool.resize(2, 0.0)
    pool.take()
    pool.tick(10_000.0)  # the cluster has no room: nobody is to blame
    assert pool.take() == []
    for now in range(10_000, 10_061, 5):  # w-0 has a place, lives, and does not come to an end
        pool.heard("w-0", float(now))
        pool.tick(float(now))
    assert pool.take() == []
    pool.heard("w-0", 10_061.0)
    pool.tick(10_061.0)
    assert pool.take() == [Start("w-2"), Stop("w-0")]
    assert pool.faults() == ["w-0 is gone: it had not started after 61 s (workers.start_timeout=60)"]


def test_a_worker_that_falls_silent_while_it_starts_is_replaced():
    pool = Pool("w", Limits(silence=10.0, start=600.0))
    pool.resize(1, 0.0)
    pool.take()
    pool.heard("w-0", 1.0)
    pool.tick(12.0)
    assert pool.take() == [Start("w-1"), Stop("w-0")]


def test_time_in_which_nobody_listened_is_no_workers_silence():
    pool = pool_of(1, silence=10.0)
    pool.forgive(3_600.0)
    pool.tick(3_605.0)
    assert pool.take() == []
    pool.tick(3_611.0)
    assert Stop("w-0") in pool.take()


def test_an_item_is_at_fault_once_two_workers_refuse_it():
    pool = pool_of(2, depth=1)
    ticket = pool.submit("a", 0.0)
    assert sent(pool) == [("w-0", ticket)]
    assert not pool.refused("w-0", ticket)
    pool.failed("w-0", ticket, "cannot be read", 1.0)
    assert sent(pool) == [("w-1", ticket)]
    assert pool.refused("w-1", ticket)


def test_a_refused_item_waits_for_the_other_worker_even_if_it_is_busy():
    pool = pool_of(2, depth=1)
    first, second = pool.submit("a", 0.0), pool.submit("b", 0.0)
    assert sent(pool) == [("w-0", first), ("w-1", second)]
    assert not pool.refused("w-0", first)
    pool.failed("w-0", first, "cannot be read", 1.0)
    assert sent(pool) == []
    assert pool.finished("w-1", second, 2.0)
    assert sent(pool) == [("w-1", first)]


def test_the_only_worker_is_given_once_more_what_it_has_refused():
    pool = pool_of(1, depth=1)
    ticket = pool.submit("a", 0.0)
    assert sent(pool) == [("w-0", ticket)] and not pool.refused("w-0", ticket)
    pool.failed("w-0", ticket, "cannot be read", 1.0)
    assert sent(pool) == [("w-0", ticket)] and pool.refused("w-0", ticket)


def test_what_takes_long_is_given_to_an_idle_worker_too_and_counts_once():
    pool = pool_of(2, depth=1, hedge=3.0)
    for n in range(6):
        ticket = pool.submit(n, float(n))
        pool.finished(sent(pool)[0][0], ticket, n + 1.0)
    slow = pool.submit("slow", 10.0)
    ((worker, _),) = sent(pool)
    pool.tick(12.0)
    assert not sent(pool)
    pool.tick(14.0)
    ((other, ticket),) = sent(pool)
    assert ticket == slow and other != worker
    assert pool.finished(other, slow, 15.0)
    assert not pool.finished(worker, slow, 16.0)
    assert len(pool) == 0
    pool.submit("next", 17.0), pool.submit("after", 17.0)
    assert {name for name, _ in sent(pool)} == {"w-0", "w-1"}


def test_what_takes_long_is_with_two_workers_at_most():
    pool = pool_of(3, depth=1, hedge=3.0)
    for n in range(6):
        ticket = pool.submit(n, float(n))
        pool.finished(sent(pool)[0][0], ticket, n + 1.0)
    pool.submit("slow", 10.0)
    assert len(sent(pool)) == 1
    pool.tick(20.0)
    assert len(sent(pool)) == 1
    pool.tick(30.0)
    assert not sent(pool) and pool.retries["hedged"] == {"slow": 1}


def test_deaths_with_work_done_between_do_not_add_up():
    pool = pool_of(1, depth=1, deaths=2)
    for now in range(0, 1000, 100):
        (worker,) = pool.workers
        ticket = pool.submit(now, now)
        assert sent(pool) == [(worker, ticket)] and pool.finished(worker, ticket, now + 1)
        pool.died(worker, "killed", now + 2)
        pool.tick(now + 70)
        (start,) = pool.take()
        pool.ready(start.worker, now + 70)
    assert pool.restarts == {"died": 10}


def test_nobody_comes_in_the_place_of_who_was_not_wanted_any_more():
    pool = pool_of(2)
    pool.died("w-0", "killed", 1.0)
    pool.died("w-1", "killed too", 2.0)  # its place is to stay empty for a second
    pool.resize(1, 2.5)
    pool.resize(2, 10.0)
    assert [action.worker for action in pool.take() if isinstance(action, Start)] == ["w-2", "w-3"]
    pool.ready("w-3", 11.0)
    assert pool.notes() == []


def test_a_draining_nodes_worker_is_replaced_before_it_goes():
    pool = pool_of(1, depth=1)
    pool.submit("a", 0.0)
    pool.take()
    pool.drain("w-0", 1.0)
    assert pool.take() == [Start("w-1")]
    assert pool.finished("w-0", 1, 2.0)
    assert pool.take() == [Stop("w-0")]


def test_ten_thousand_items_and_a_hundred_faults_none_lost_none_doubled():
    workers = Workers(32, die=0.005, fail=0.003, hang=0.002, limits=Limits(deaths=100))
    for item in range(10_000):
        workers.submit(item)
    workers.run()
    assert workers.faults > 50
    assert Counter(workers.finished) == Counter(range(10_000))
    workers.settle(32)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=6),
    depth=st.integers(1, 3),
    die=st.sampled_from([0.0, 0.05, 0.15]),
)
def test_resizing_in_mid_run_loses_and_doubles_nothing(seed, sizes, depth, die):
    workers = Workers(sizes[0], seed=seed, die=die, limits=Limits(depth=depth, attempts=50, deaths=1000))
    for item in range(60):
        workers.submit(item)
    for n, size in enumerate(sizes):
        workers.run(until=10 * n)
        workers.pool.resize(size, workers.now)
        workers.perform()
    workers.run()
    assert Counter(workers.finished) == Counter(range(60))
    workers.settle(sizes[-1])


def test_what_was_mended_is_counted_by_its_cause():
    pool = pool_of(4, depth=1, strikes=1, silence=10.0)
    for item in "abcd":
        pool.submit(item, 0.0)
    assert len(sent(pool)) == 4
    pool.died("w-0", "SIGKILL", 1.0)
    pool.failed("w-1", 2, "CUDA error", 1.0)
    pool.drain("w-2", 1.0)
    pool.heard("w-2", 9.0)
    pool.tick(11.0)
    assert pool.restarts == {"died": 1, "failing": 1, "silent": 1, "drained": 1}
    assert pool.retries["lost"] == {"died": 1, "failing": 1, "silent": 1}


def test_a_worker_that_was_only_finishing_is_not_replaced_when_it_dies():
    pool = pool_of(2, depth=1)
    pool.submit("a", 0.0)
    pool.resize(1, 0.0)
    pool.submit("b", 0.0)
    leaving = next(name for name, worker in pool.workers.items() if worker.state is WorkerState.DRAINING or worker.held)
    pool.resize(0, 0.0)
    pool.died(leaving, "SIGKILL", 1.0)
    assert not pool.restarts


def test_a_second_worker_for_a_slow_task_is_counted():
    pool = pool_of(2, depth=1)
    for item in range(6):
        ticket = pool.submit(item, float(item))
        pool.finished(sent(pool)[0][0], ticket, item + 1.0)
    pool.submit("slow", 10.0)
    pool.tick(20.0)
    assert pool.retries["hedged"] == {"slow": 1}


def test_only_failures_in_a_row_have_a_worker_replaced():
    pool = pool_of(1, depth=1, strikes=2, attempts=9)
    for start in (0.0, 10.0, 20.0):
        ticket = pool.submit(start, start)
        assert sent(pool) == [("w-0", ticket)]
        pool.failed("w-0", ticket, "CUDA error", start + 1)
        assert sent(pool) == [("w-0", ticket)]
        assert pool.finished("w-0", ticket, start + 2)
    assert not pool.restarts and list(pool.workers) == ["w-0"]


def test_a_leaving_worker_goes_once_another_has_finished_its_items():
    pool = pool_of(2, depth=1, hedge=3.0)
    for n in range(6):
        ticket = pool.submit(n, float(n))
        pool.finished(sent(pool)[0][0], ticket, n + 1.0)
    slow = pool.submit("slow", 10.0)
    ((worker, _),) = sent(pool)
    pool.tick(20.0)
    ((other, _),) = sent(pool)
    pool.drain(worker, 21.0)
    assert Stop(worker) not in pool.take() and worker in pool.workers
    assert pool.finished(other, slow, 22.0)
    assert Stop(worker) in pool.take() and worker not in pool.workers


def test_a_lent_worker_takes_items_until_it_is_withdrawn():
    pool = pool_of(1, depth=1)
    pool.lend("learner-0", 0.0)
    for item in "abcd":
        pool.submit(item, 0.0)
    assert sent(pool) == [("w-0", 1), ("learner-0", 2)]
    pool.withdraw("learner-0")
    assert pool.finished("learner-0", 2, 1.0) and sent(pool) == []
    pool.lend("learner-0", 2.0)
    assert sent(pool) == [("learner-0", 3)]


def test_a_lent_worker_alone_is_never_started_stopped_or_missed():
    pool = pool_of(0, depth=2, silence=5.0, start=5.0)
    ticket = pool.submit("a", 0.0)
    assert pool.take() == []
    pool.lend("learner-0", 0.0)
    assert sent(pool) == [("learner-0", ticket)]
    pool.withdraw("learner-0")  # in the midst of an item
    pool.lend("learner-0", 1.0)
    pool.tick(1000.0)
    assert pool.finished("learner-0", ticket, 1000.0)
    pool.withdraw("learner-0")
    assert (pool.take(), pool.faults(), dict(pool.restarts), pool.workers) == ([], [], {}, {})


def test_items_of_a_lost_lent_worker_wait_for_the_next():
    pool = pool_of(0)
    ticket = pool.submit("a", 0.0)
    pool.lend("learner-0", 0.0)
    assert sent(pool) == [("learner-0", ticket)]
    pool.died("learner-0", "its learner was lost", 1.0)
    assert pool.take() == [] and pool.restarts == {}
    pool.lend("learner-0", 2.0)
    assert sent(pool) == [("learner-0", ticket)]


def test_an_idle_lent_worker_is_asked_where_another_takes_long():
    pool = pool_of(1, depth=1, hedge=3.0)
    for n in range(5):
        ticket = pool.submit(n, float(n))
        assert pool.finished("w-0", ticket, n + 1.0)
    ticket = pool.submit("slow", 10.0)
    pool.take()
    pool.lend("learner-0", 11.0)
    pool.tick(20.0)
    assert sent(pool) == [("learner-0", ticket)]


def test_workers_are_looked_at_once_a_second_however_often_it_ticks():
    pool = pool_of(2, silence=10.0, hedge=3.0)
    pool.tick(5.0)
    pool.heard("w-1", 5.9)
    pool.workers["w-0"].heard = -10.0
    pool.tick(5.9)
    assert set(pool.workers) == {"w-0", "w-1"}
    pool.tick(6.0)
    assert set(pool.workers) == {"w-1", "w-2"} and "silent" in pool.faults()[0]


def test_the_end_of_a_lent_worker_that_fails_is_not_for_the_pool_to_decide():
    pool = Pool("sampler", Limits())
    pool.resize(0, 0.0)
    pool.lend("learner-0", 0.0)
    pool.submit("a", 0.0)
    for now in range(1, 5):
        (ticket,) = [action.ticket for action in pool.take() if isinstance(action, Send)]
        pool.failed("learner-0", ticket, "out of memory", float(now))
        assert "learner-0" in pool.workers
    (ticket,) = [action.ticket for action in pool.take() if isinstance(action, Send)]
    with pytest.raises(ClusterError, match=r"lost 5 times.*out of memory"):
        pool.failed("learner-0", ticket, "out of memory", 5.0)
