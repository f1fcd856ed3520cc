"""sampling.batch=auto: each sampler keeps the fastest batch that fits, and the learner takes old predictions itself."""

import pytest
import torch

from pcpo_ray.workers import sampling_batch
from pcpo_ray.workers.learner.learner import Learner
from pcpo_ray.workers.sampler import Sampler
from tests.support import small
from tests.support.trajectories import CPU, batch, task

AUTO = {"sampling__batch": "auto", "objective__old_predictions": "recomputed"}


@pytest.mark.parametrize(("images", "sizes"), [(1, [1]), (6, [6, 3, 2, 1]), (16, [16, 8, 4, 2, 1])])
def test_a_group_and_its_parts_are_tried_down_to_one_image(images, sizes):
    assert sampling_batch.candidates(images) == sizes


def choose(monkeypatch, seconds, images=8):
    """Choose where a prediction of a size takes so many seconds; None is no room for it."""

    def measured(predict, size, device):
        predict(size)
        return seconds[size]

    def predict(size):
        if seconds[size] is None:
            raise torch.OutOfMemoryError(f"no room for {size}")

    monkeypatch.setattr(sampling_batch, "seconds_of", measured)
    return sampling_batch.choose(images, predict, CPU)


def test_the_fastest_for_each_image_is_chosen_among_those_that_fit(monkeypatch):
    assert choose(monkeypatch, {8: 8.0, 4: 2.0, 2: 1.5, 1: 1.0}) == 4
    assert choose(monkeypatch, {8: None, 4: None, 2: 1.5, 1: 1.0}) == 2
    with pytest.raises(torch.OutOfMemoryError, match="no room for 1"):
        choose(monkeypatch, dict.fromkeys((8, 4, 2, 1)))


def test_the_choice_of_the_first_task_holds_for_all_and_is_learned_from(small_sd, monkeypatch):
    run = small.run(small_sd, **AUTO, optimizer__minibatches=2)
    sampler, learner = Sampler(run, CPU), Learner(run, CPU)
    asked = []

    def two(images, predict, device):
        asked.append(images)
        return 2

    monkeypatch.setattr(sampling_batch, "choose", two)
    sampler.sample(task(purpose="evaluate"))
    rows, predict = [], sampler.policy.predict

    def noted(latents, *rest):
        rows.append(len(latents))
        return predict(latents, *rest)

    monkeypatch.setattr(sampler.policy, "predict", noted)
    groups = batch(sampler, learner)
    assert asked == [4] and set(rows) <= {1, 2} and rows.count(2) == 2 * 2 * 4  # the canary has one row
    update = learner.update(1, groups)
    assert update.first_log_ratio == 0.0 and update.moved_fraction > 0
