"""The learning rate is a function of the step: transformers' schedule, with a warm-up that wastes no step."""

import pytest
import torch
from transformers import get_scheduler

from pcpo_ray.errors import ConfigError
from pcpo_ray.workers.learner.learning_rate import LearningRate
from tests.support import small

STEPS = 10
SCHEDULES: dict[str, dict] = {
    "linear": {},
    "cosine": {},
    "cosine_with_restarts": {"num_cycles": 2},
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "polynomial": {"power": 2.0, "lr_end": 1e-6},
    "inverse_sqrt": {},
    "warmup_stable_decay": {"num_decay_steps": 4},
}


def rates(path, optimizer):
    made = LearningRate(small.run(path, steps=STEPS, optimizer=f"{{learning_rate: 1e-3, {optimizer}}}"))
    return [made.at(step) for step in range(1, STEPS + 1)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_without_warm_up_the_rates_are_transformers_own(small_sd, schedule):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    theirs = get_scheduler(schedule, optimizer, 0, STEPS, scheduler_specific_kwargs=dict(SCHEDULES[schedule]))
    expected = []
    for _ in range(STEPS):
        expected.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    assert rates(small_sd, f"schedule: {schedule}, schedule_options: {SCHEDULES[schedule]}") == pytest.approx(expected)


@pytest.mark.parametrize("schedule", ["constant", *SCHEDULES])
def test_a_warm_up_rises_evenly_and_no_step_has_the_rate_0(small_sd, schedule):
    options = f"schedule_options: {SCHEDULES.get(schedule, {})}"
    found = rates(small_sd, f"schedule: {schedule}, {options}, warmup: 3")
    assert found[:4] == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3])
    assert all(rate > 0 for rate in found) and max(found) == found[3]


def test_the_default_leaves_the_optimizers_own_rate_alone(small_sd):
    made = LearningRate(small.run(small_sd))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.125)
    assert made.set(optimizer, 7) == 0.125 and optimizer.param_groups[0]["lr"] == 0.125
    assert made.at(1) == made.at(STEPS) == 1e-2


def test_every_group_gets_the_rate_of_the_step(small_sd):
    made = LearningRate(small.run(small_sd, steps=4, optimizer="{learning_rate: 1.0, schedule: linear}"))
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))]}, {"params": [torch.nn.Parameter(torch.ones(1))]}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    assert [made.set(optimizer, step) for step in (1, 3, 2)] == [1.0, 0.5, 0.75]  # in any order, as after a restart
    assert [group["lr"] for group in optimizer.param_groups] == [0.75, 0.75]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("schedule: cosine_with_min_lr", "min_lr"),
        ("schedule: linear, schedule_options: {cycles: 2}", "cycles"),
        ("schedule: polynomial, schedule_options: {lr_end: 1}", "lr_end"),
        ("schedule: cosine_with_min_lr, schedule_options: {min_lr_rate: 2}", "factors from 0 to 1"),
    ],
)
def test_options_that_a_schedule_does_not_take_are_refused(small_sd, text, words):
    with pytest.raises(ConfigError, match=f"optimizer.schedule=.*{words}"):
        rates(small_sd, text)
