"""When to say something, and when to stop."""

import pytest

from pcpo_ray.errors import ClusterError
from pcpo_ray.training.scheduling.watchdog import Watchdog


def test_a_line_every_quiet_while_nothing_moves_and_an_end():
    dog = Watchdog(limit=100.0, quiet=30.0, now=0.0)
    assert dog.check(29.0, "update 3") is None
    assert dog.check(31.0, "update 3") == "update 3, with nothing new for 31 s"
    assert dog.check(60.0, "update 3") is None
    assert dog.check(62.0, "update 3") is not None
    dog.progress(63.0)
    assert dog.check(92.0, "update 3") is None
    with pytest.raises(ClusterError, match=r"101 s .*task_timeout=100.*: update 3"):
        dog.check(164.0, "update 3")


def test_a_line_is_due_while_work_goes_on_and_nothing_else_is_printed():
    dog = Watchdog(limit=100.0, quiet=30.0, now=0.0)
    dog.progress(25.0)
    assert dog.check(31.0, "3 of 8 groups") == "3 of 8 groups"
    dog.spoke(40.0)
    assert dog.check(65.0, "3 of 8 groups") is None
    assert dog.check(71.0, "3 of 8 groups") == "3 of 8 groups, with nothing new for 46 s"
