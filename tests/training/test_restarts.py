"""Restarts: a learner may be lost now and then, and not again and again."""

import pytest

from pcpo_ray.errors import LearnerLostError
from pcpo_ray.training.restarts import AT_ONE_STEP, MAX_RESTARTS, Restarts

LOST = LearnerLostError("killed")


def test_losses_at_one_step_end_the_run():
    restarts = Restarts()
    for _ in range(AT_ONE_STEP - 1):
        restarts.add(LOST, 6)
    with pytest.raises(LearnerLostError, match="killed; the learner was lost 3 times at step 6 before the first"):
        restarts.add(LOST, 6)


def test_losses_at_many_steps_end_the_run_too():
    restarts = Restarts()
    restarts.restored(2)
    for step in range(MAX_RESTARTS):
        restarts.add(LOST, step)
    with pytest.raises(LearnerLostError, match=r"lost 6 times with no newer checkpoint .* that of step 2\)"):
        restarts.add(LOST, MAX_RESTARTS)


def test_only_a_newer_checkpoint_forgives_losses():
    restarts = Restarts()
    restarts.saved(4)
    restarts.add(LOST, 5)
    restarts.saved(4)  # the one that was restored, made again
    assert restarts.count == 1
    restarts.saved(5)
    assert restarts.count == 0 and not restarts.at_step
