"""A deadline for calls that have none."""

import threading

import pytest

from pcpo_ray.process.deadlines import within


def test_what_never_answers_is_left_behind():
    released = threading.Event()
    with pytest.raises(TimeoutError, match=r"no answer in 0\.05 s"):
        within(0.05, lambda: released.wait(250))
    released.set()


def test_an_answer_or_an_error_in_time_comes_through():
    assert within(60, lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        within(60, lambda: 1 // 0)
