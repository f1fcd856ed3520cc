"""How far an update moves the weights, and when a run is said to train on nothing."""

import math

import pytest
import torch

from pcpo_ray import config
from pcpo_ray.errors import TrainingError
from pcpo_ray.workers.learner.distributed import Rank
from pcpo_ray.workers.learner.learner import Learner
from pcpo_ray.workers.learner.movement import PATIENCE, SAMPLED, Movement, unmoved
from pcpo_ray.workers.sampler import Sampler
from tests.support import small
from tests.support.trajectories import ADVANTAGES, CPU, task

ALONE = Rank()
ADAMW = config.Optimizer()
MOVING = {
    "moved_fraction": 0.9,
    "update_ratio": 1e-4,
    "gradient_norm": 0.5,
    "learning_rate": 3e-4,
    "skipped_gradients": 0,
    "advantage_abs_mean": 0.7,
    "inactive_fraction": 0.1,
}


def rows(count=PATIENCE, **changes):
    return [{**MOVING, **changes}] * count


def test_evenly_spaced_values_stand_for_a_large_tensor():
    torch.manual_seed(0)
    large, small = torch.randn(512, 1024), torch.randn(7)
    movement = Movement([large, small], ALONE)
    assert [len(some) for some in movement.before] == [-(-large.numel() // 9), 7] and large.numel() // 9 < SAMPLED
    large[:, :256] += 0.1  # columns: a stride of 8 would meet an eighth of them only
    moved = movement.measured(1)
    assert moved.moved_fraction == pytest.approx(0.25, abs=0.01)
    size = math.sqrt(float(large.square().sum() + small.square().sum()))
    assert moved.update_ratio == pytest.approx(0.1 * math.sqrt(512 * 256) / size, rel=0.02)


def test_weights_that_are_not_finite_are_found_wherever_they_are():
    large = torch.zeros(512, 1024)
    movement = Movement([large], ALONE)
    large[3, 1] = math.nan  # none of those that stand for the tensor
    assert all(some.isfinite().all() for some in Movement([large], ALONE).before)
    with pytest.raises(TrainingError, match="weights after update 3 are not finite"):
        movement.measured(3)


STILL = {
    "all scores of a group were equal": {"moved_fraction": 0.0, "gradient_norm": 0.0, "advantage_abs_mean": 0.0},
    "gradients were not finite": {"moved_fraction": 0.0, "gradient_norm": math.nan, "skipped_gradients": 1},
    "90% of the pairs outside the clip range": {"gradient_norm": 0.0, "inactive_fraction": 0.9},
    "what float32 can add to most weights": {"moved_fraction": 1e-4},
    "raise optimizer.learning_rate": {"update_ratio": 1e-12},
    "by weight decay alone": {"update_ratio": 9e-8},
}


@pytest.mark.parametrize("why", STILL)
def test_each_way_to_train_on_nothing_is_told_apart(why):
    assert why in unmoved(rows(**STILL[why]), ADAMW)


def test_a_run_that_moves_now_and_then_or_has_just_begun_goes_on():
    assert unmoved(rows(), ADAMW) == ""
    assert unmoved(rows(PATIENCE - 1, moved_fraction=0.0), ADAMW) == ""
    assert unmoved([*rows(PATIENCE, moved_fraction=0.0), MOVING], ADAMW) == ""
    assert unmoved([MOVING, *rows(PATIENCE, moved_fraction=0.0)], ADAMW) != ""


@pytest.mark.parametrize("weight_decay", [1e-4, 1e-3, 1.0])
@pytest.mark.parametrize("nothing", [{"epsilon": 1e10}, {"max_gradient_norm": 1e-30}])
def test_weight_decay_alone_is_told_from_learning(small_sd, nothing, weight_decay):
    decaying = {"learning_rate": 3e-4, "weight_decay": weight_decay}
    for changes in (nothing, {}):
        run = small.run(small_sd, **{f"optimizer__{key}": value for key, value in {**decaying, **changes}.items()})
        sampler, learner = Sampler(run, CPU), Learner(run, CPU)
        sampler.load(learner.weights())
        update = learner.update(1, [(0, sampler.sample(task())[0], ADVANTAGES)])
        assert update.moved_fraction > 0.4
        row = {**MOVING, "update_ratio": update.update_ratio, "gradient_norm": update.gradient_norm}
        assert ("by weight decay alone" in unmoved([row] * PATIENCE, run.optimizer)) == bool(changes)
