"""Whose failure it was, and how long to wait."""

from pcpo_ray.errors import RewardError
from pcpo_ray.training.scheduling.retries import Backoff, Blame, blame


def test_our_own_errors_are_the_datas_and_any_other_may_be_the_workers():
    assert blame(RewardError("no such key")) is Blame.DATA
    assert blame(RuntimeError("CUDA error: an illegal memory access was encountered")) is Blame.WORKER


def test_the_first_retry_is_at_once_and_later_ones_back_off_to_a_limit():
    backoff = Backoff(first=1.0, longest=5.0)
    waits = []
    for _ in range(6):
        backoff.failed(max(0.0, backoff.until))
        waits.append(backoff.seconds)
    assert waits == [0.0, 1.0, 2.0, 4.0, 5.0, 5.0]
    backoff.succeeded()
    assert backoff.seconds == 0.0


def test_failures_before_the_next_try_are_of_the_same_one():
    backoff = Backoff(first=1.0, longest=60.0)
    for _ in range(100):
        backoff.failed(10.0)
    assert backoff.failures == 100 and backoff.until == 11.0
