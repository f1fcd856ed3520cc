"""A driver beside a crowd rests between its looks; beside few workers it does not."""

from types import SimpleNamespace

import pytest
import ray

from pcpo_ray.cluster import waiting


@pytest.fixture
def spent(monkeypatch):
    """The seconds rested, and a clock that they pass on."""
    clock, rests = [100.0], []

    def sleep(seconds):
        rests.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr(waiting, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=sleep))

    def wait(references, timeout):
        clock[0] += timeout / 100
        return [], references

    monkeypatch.setattr(ray, "wait", wait)
    return clock, rests


@pytest.mark.parametrize(
    ("references", "worked", "timeout", "rest"),
    [(200, 0.02, 1.0, None), (201, 0.02, 1.0, 0.06), (3000, 5.0, 1.0, 0.25), (3000, 5.0, 0.1, 0.1)],
)
def test_it_rests_by_what_it_worked_within_bounds(spent, references, worked, timeout, rest):
    clock, rests = spent
    waiter = waiting.Waiter()
    waiter.wait([], timeout)
    clock[0] += worked
    rests.clear()
    waiter.wait([None] * references, timeout)
    assert rests == ([] if rest is None else [pytest.approx(rest)])


def test_what_a_wait_took_is_no_work(spent):
    _, rests = spent
    waiter = waiting.Waiter()
    for _ in range(3):
        waiter.wait([None] * 1000, 10.0)
    assert rests == [0.0, 0.0, 0.0]


def test_what_is_there_and_is_left_there_wakes_the_driver_once(monkeypatch):
    there, asked = {"rank 0"}, []

    def wait(references, timeout):
        asked.append(list(references))
        return [one for one in references if one in there][:1], references

    monkeypatch.setattr(ray, "wait", wait)
    waiter = waiting.Waiter()
    waiter.wait(["rank 0", "rank 1"], 1.0)
    waiter.wait(["rank 0", "rank 1"], 1.0)
    there.add("rank 1")
    waiter.wait(["rank 0", "rank 1"], 1.0)
    assert asked == [["rank 0", "rank 1"], ["rank 1"], ["rank 1"]]
    rests = []
    monkeypatch.setattr(waiting, "time", SimpleNamespace(monotonic=lambda: 0.0, sleep=rests.append))
    waiter.wait(["rank 0", "rank 1"], 1.0)  # nothing else can come
    assert rests == [1.0] and len(asked) == 3
    waiter.wait(["rank 1"], 1.0)
    waiter.wait(["rank 0", "rank 1"], 1.0)  # it was taken meanwhile: this is another's
    assert asked[3:] == [["rank 0"]]
