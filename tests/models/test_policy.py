"""Which steps a group is sampled with and trained on."""

import dataclasses

import pytest
import torch

from pcpo_ray import config
from pcpo_ray.algorithm.schedule import FlowSchedule
from pcpo_ray.errors import CreditError
from pcpo_ray.models import policy
from pcpo_ray.models.policy import Policy
from tests.support import small

CPU = torch.device("cpu")


@pytest.mark.parametrize("model", ["small_sd", "small_flux"])
def test_a_share_of_the_steps_keeps_the_sampler_and_the_weights_of_those_chosen(model, request):
    made = Policy(
        small.run(request.getfixturevalue(model), sampling__steps=8, sampling__subset="{kind: share, share: 0.5}"), CPU
    )
    whole, part = made.credit, made.credit_of(3, 1)
    assert part.steps == whole.steps
    assert len(part.trained) == round(len(whole.trained) / 2)
    for index, weight in enumerate(part.weights):
        assert weight == (whole.weights[index] if index in part.trained else 0.0)
    assert made.credit_of(3, 1) == part
    assert len({made.credit_of(step, position).trained for step in range(5) for position in range(3)}) > 5


@pytest.mark.parametrize("model", ["small_sd", "small_flux"])
def test_outside_a_window_no_step_draws_noise(model, request):
    made = Policy(
        small.run(request.getfixturevalue(model), sampling__steps=8, sampling__subset="{kind: window, size: 3}"), CPU
    )
    part = made.credit_of(1, 0)
    assert part.trained == (0, 1, 2)
    assert [step.std > 0 for step in part.steps] == [True] * 3 + [False] * 5
    assert part.steps[:3] == made.credit.steps[:3] and part.weights[:3] == made.credit.weights[:3]
    assert part.steps[3:] == policy.deterministic_steps(made.schedule)[3:]
    assert made.credit_of(1, 7) == part  # the whole batch's


def test_a_window_mixes_only_what_it_trains(small_sd):
    made = Policy(
        small.run(small_sd, sampling__steps=8, sampling__subset="{kind: window, size: 3}", credit__kind="interpolate"),
        CPU,
    )
    part = made.credit_of(1, 0)
    assert part.mix == (*made.credit.mix[:3], *[1.0] * 5)


def test_a_sliding_window_visits_every_place_and_begins_again():
    window = config.Window(size=2, every=2, stride=2)
    places = [policy.first_of_window(window, 7, step, seed=0) for step in range(1, 12)]
    assert places == [0, 0, 2, 2, 4, 4, 5, 5, 0, 0, 2]
    whole = config.Window(size=7)
    assert {policy.first_of_window(whole, 7, step, seed=0) for step in range(1, 60)} == {0}


def test_a_random_window_is_a_function_of_seed_and_step():
    window = config.Window(size=2, order="random")
    places = [policy.first_of_window(window, 7, step, seed=1) for step in range(1, 100)]
    assert places == [policy.first_of_window(window, 7, step, seed=1) for step in range(1, 100)]
    assert set(places) == set(range(6))
    assert places != [policy.first_of_window(window, 7, step, seed=2) for step in range(1, 100)]


def test_zeta_is_that_of_the_whole_grid_in_every_window():
    """Else a window over short steps would carry as much credit as one over long ones."""
    sampling = config.Sampling(
        steps=16, process=config.ConstantNoise(), subset=config.Window(size=2, every=1), shift=3.0
    )
    schedule = FlowSchedule.shifted(steps=16, shift=3.0)
    whole = policy.plan(config.Proportionate(), sampling, schedule)
    zetas = {round(w / dt, 9) for w, dt in zip(whole.weights[:-1], schedule.dt, strict=False)}
    assert len(zetas) == 1
    part = whole.restricted((4, 5))
    assert part.weights[4:6] == whole.weights[4:6] and sum(part.weights) == sum(whole.weights[4:6])


def test_a_single_step_of_a_flow_has_nothing_to_train():
    sampling = config.Sampling(steps=1, process=config.ConstantNoise(), shift=3.0)
    with pytest.raises(CreditError, match=r"sampling\.steps is 1, .*use at least 2"):
        policy.plan(config.Proportionate(), sampling, FlowSchedule.shifted(steps=1, shift=3.0))


def test_a_window_wider_than_the_trained_steps_is_refused():
    sampling = config.Sampling(
        steps=16, process=config.ConstantNoise(), subset=config.Window(size=4), trained_steps=3, shift=3.0
    )
    schedule = FlowSchedule.shifted(steps=16, shift=3.0)
    with pytest.raises(CreditError, match=r"sampling\.subset\.size is 4, of 3"):
        policy.plan(config.Native(), sampling, schedule)
    policy.plan(config.Native(), dataclasses.replace(sampling, trained_steps=4), schedule)


FLOW_PROCESSES = [
    config.ConstantNoise(),
    config.RatioNoise(),
    config.CoefficientsPreserving(),
    config.ProportionateNoise(),
    config.ProportionateNoise(zeta=14.0),
]


@pytest.mark.parametrize("process", FLOW_PROCESSES, ids=str)
def test_every_flow_process_draws_noise_at_each_step_but_the_last(process):
    schedule = FlowSchedule.shifted(steps=16, shift=3.0)
    steps = policy.native_steps(config.Sampling(steps=16, process=process), schedule)
    assert [step.std > 0 for step in steps] == [True] * 15 + [False]
    assert steps[-1] == policy.deterministic_steps(schedule)[-1]
    for kind in (config.Native(), config.Reweight(), config.Proportionate(), config.Tilted(slope=-0.5)):
        plan = policy.plan(kind, config.Sampling(steps=16, process=process), schedule)
        assert plan.steps == steps and plan.trained == tuple(range(15)) and min(plan.weights[:15]) > 0


def test_a_zeta_out_of_reach_is_refused_before_a_run_starts():
    sampling = config.Sampling(steps=16, process=config.ProportionateNoise(zeta=14.0), shift=1.0)
    with pytest.raises(CreditError, match=r"sampling\.process\.zeta"):
        policy.plan(config.Native(), sampling, FlowSchedule.shifted(steps=16, shift=1.0))


@pytest.mark.parametrize("model", ["small_sd", "small_flux"])
def test_tilted_credit_samples_as_the_native_one(model, request):
    folder = request.getfixturevalue(model)
    tilted = Policy(small.run(folder, credit="{kind: tilted, slope: 0.5}"), CPU)
    assert tilted.credit.steps == tilted.native
    assert len(set(tilted.credit.weights)) > 1
