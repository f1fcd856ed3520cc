"""Steps and their credit from the config: windows, processes, and plans that are refused."""

import dataclasses

import pytest

from pcpo_ray import config
from pcpo_ray.algorithm.schedule import FlowSchedule
from pcpo_ray.errors import CreditError
from pcpo_ray.models import steps


def test_a_sliding_window_visits_every_place_and_begins_again():
    window = config.Window(size=2, every=2, stride=2)
    places = [steps.first_of_window(window, 7, step, 0, seed=0) for step in range(1, 12)]
    assert places == [0, 0, 2, 2, 4, 4, 5, 5, 0, 0, 2]
    whole = config.Window(size=7)
    assert {steps.first_of_window(whole, 7, step, 0, seed=0) for step in range(1, 60)} == {0}


def test_a_random_window_is_a_function_of_seed_and_step():
    window = config.Window(size=2, order="random")
    places = [steps.first_of_window(window, 7, step, 0, seed=1) for step in range(1, 100)]
    assert places == [steps.first_of_window(window, 7, step, 0, seed=1) for step in range(1, 100)]
    assert set(places) == set(range(6))
    assert places != [steps.first_of_window(window, 7, step, 0, seed=2) for step in range(1, 100)]


def test_a_window_per_prompt_is_drawn_for_each_place_in_the_batch():
    alone, together = (config.Window(size=1, order=order) for order in ("per_prompt", "random"))
    places = [[steps.first_of_window(alone, 7, step, place, seed=1) for place in range(50)] for step in (1, 2)]
    assert set(places[0]) == set(range(7)) and places[0] != places[1]
    assert places[0] == [steps.first_of_window(alone, 7, 1, place, seed=1) for place in range(50)]
    assert len({steps.first_of_window(together, 7, 1, place, seed=1) for place in range(50)}) == 1


def test_zeta_is_that_of_the_whole_grid_in_every_window():
    """A window over short steps must carry less credit than one over long steps."""
    sampling = config.Sampling(
        steps=16, process=config.ConstantNoise(), subset=config.Window(size=2, every=1), shift=3.0
    )
    schedule = FlowSchedule.shifted(steps=16, shift=3.0)
    whole = steps.plan(config.Proportionate(), sampling, schedule)
    zetas = {round(w / dt, 9) for w, dt in zip(whole.weights[:-1], schedule.dt, strict=False)}
    assert len(zetas) == 1
    part = whole.restricted((4, 5))
    assert part.weights[4:6] == whole.weights[4:6] and sum(part.weights) == sum(whole.weights[4:6])


def test_a_single_step_of_a_flow_has_nothing_to_train():
    sampling = config.Sampling(steps=1, process=config.ConstantNoise(), shift=3.0)
    with pytest.raises(CreditError, match=r"sampling\.steps is 1, .*use at least 2"):
        steps.plan(config.Proportionate(), sampling, FlowSchedule.shifted(steps=1, shift=3.0))


def test_a_window_wider_than_the_trained_steps_is_refused():
    sampling = config.Sampling(
        steps=16, process=config.ConstantNoise(), subset=config.Window(size=4), trained_steps=3, shift=3.0
    )
    schedule = FlowSchedule.shifted(steps=16, shift=3.0)
    with pytest.raises(CreditError, match=r"sampling\.subset\.size is 4, of 3"):
        steps.plan(config.Native(), sampling, schedule)
    steps.plan(config.Native(), dataclasses.replace(sampling, trained_steps=4), schedule)


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
    made = steps.native_steps(config.Sampling(steps=16, process=process), schedule)
    assert [step.std > 0 for step in made] == [True] * 15 + [False]
    assert made[-1] == steps.deterministic_steps(schedule)[-1]
    for kind in (config.Native(), config.Reweight(), config.Proportionate(), config.Tilted(slope=-0.5)):
        plan = steps.plan(kind, config.Sampling(steps=16, process=process), schedule)
        assert plan.steps == made and plan.trained == tuple(range(15)) and min(plan.weights[:15]) > 0


def test_a_zeta_out_of_reach_is_refused_before_a_run_starts():
    sampling = config.Sampling(steps=16, process=config.ProportionateNoise(zeta=14.0), shift=1.0)
    with pytest.raises(CreditError, match=r"sampling\.process\.zeta"):
        steps.plan(config.Native(), sampling, FlowSchedule.shifted(steps=16, shift=1.0))
