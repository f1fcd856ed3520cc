import math
from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from pcpo_ray.algorithm import credit
from pcpo_ray.algorithm.objective import log_ratio
from pcpo_ray.algorithm.schedule import FlowSchedule
from pcpo_ray.algorithm.transitions import ddim, flow_sde
from pcpo_ray.errors import CreditError
from tests.support.schedules import diffusion_schedules, flow_schedules, sd15

SCHEDULE = sd15()
STEPS = ddim.steps(SCHEDULE)
DIFFUSION_KINDS = {
    "native": lambda trained: credit.native(STEPS, trained),
    "reweight": lambda trained: credit.reweight(STEPS, trained),
    "released": lambda trained: credit.released(SCHEDULE, trained),
    "variance": lambda trained: credit.variance(SCHEDULE, trained),
    "interpolate": lambda trained: credit.interpolate(STEPS, trained),
}
kinds = pytest.mark.parametrize("kind", list(DIFFUSION_KINDS))


def over(trained, values):
    return [values[index] for index in trained]


def mean(values):
    values = list(values)
    return math.fsum(values) / len(values)


@kinds
@pytest.mark.parametrize(("count", "native_mean"), [(50, 0.516900), (49, 0.506976), (48, 0.449313)])
def test_every_kind_keeps_the_mean_native_weight_of_the_trained_steps(kind, count, native_mean):
    made = DIFFUSION_KINDS[kind](range(count))
    assert mean(over(made.trained, made.weights)) == pytest.approx(native_mean, abs=5e-7)


@kinds
def test_untrained_steps_carry_nothing_and_keep_the_native_sampler(kind):
    trained = (3, 7, 30)
    made = DIFFUSION_KINDS[kind](trained)
    assert made.trained == trained and len(made.steps) == len(made.weights) == len(made.mix) == 50
    for index in set(range(50)) - set(trained):
        assert made.weights[index] == 0.0 and made.mix[index] == 1.0
        assert made.steps[index] == STEPS[index]


@pytest.mark.parametrize("kind", ["reweight", "released", "variance", "interpolate"])
def test_every_proportionate_kind_for_diffusion_carries_one_constant(kind):
    made = DIFFUSION_KINDS[kind](range(50))
    assert len(set(made.weights)) == 1


@pytest.mark.parametrize("kind", ["native", "reweight", "interpolate"])
def test_kinds_that_keep_the_sampler_keep_it_to_the_bit(kind):
    assert DIFFUSION_KINDS[kind](range(49)).steps == STEPS


def test_native_credit_is_each_step_s_own_weight():
    assert credit.native(STEPS, range(50)).weights == tuple(step.weight for step in STEPS)


def test_released_samples_at_the_plus_root_and_scales_4_5_by_8_70575():
    made = credit.released(SCHEDULE, range(50))
    assert 4.5 / made.weights[0] == pytest.approx(8.70575, abs=1e-5)
    for index, step in enumerate(made.steps):
        assert step.std == ddim.plus_sigma(SCHEDULE, index, 4.5)


def test_released_leaves_the_weights_of_its_own_sampler_uneven():
    true = [step.weight for step in credit.released(SCHEDULE, range(50)).steps]
    assert max(true) / min(true) > 8
    assert all(weight < 4.5 for weight in true)


def test_variance_samples_with_constant_weights_at_the_least_feasible_one():
    made = credit.variance(SCHEDULE, range(48))
    assert over(made.trained, [step.weight for step in made.steps]) == pytest.approx([1.0172595250401] * 48, rel=1e-12)


def test_variance_takes_a_higher_weight_when_it_is_given_one():
    made = credit.variance(SCHEDULE, range(50), w_star=4.0)
    assert [step.weight for step in made.steps] == pytest.approx([4.0] * 50, rel=1e-12)


@pytest.mark.parametrize("kind", [credit.variance, credit.released])
@pytest.mark.parametrize("w_star", [0.5169, 3.27, -1.0, 0.0, math.inf, math.nan])
def test_an_infeasible_weight_is_refused_with_the_least_one_and_its_step(kind, w_star):
    with pytest.raises(CreditError, match=r"smallest feasible w_star is 3\.27479, which step 48 \(timestep 21\)"):
        kind(SCHEDULE, range(50), w_star=w_star)


def test_the_released_weight_is_infeasible_for_twenty_trained_steps():
    with pytest.raises(CreditError, match=r"the weight 4\.5: the smallest feasible w_star is 5\.43091"):
        credit.released(sd15(20), range(20))


def test_another_eta_changes_the_untrained_steps_and_the_native_mean():
    native = ddim.steps(SCHEDULE, eta=0.5)
    made = credit.variance(SCHEDULE, range(40), eta=0.5)
    assert made.steps[40:] == native[40:]
    assert made.weights[0] == pytest.approx(mean(step.weight for step in native[:40]), rel=1e-12)


def test_interpolate_mixes_so_that_native_weights_become_one_constant():
    made = credit.interpolate(STEPS, range(50))
    for step, mix, weight in zip(made.steps, made.mix, made.weights, strict=True):
        assert mix * step.weight == pytest.approx(weight, rel=1e-14)
    assert credit.interpolate(STEPS, range(50), w_star=0.3).weights == (0.3,) * 50


@pytest.mark.parametrize("index", [0, 22, 48])
def test_interpolate_gives_the_exact_ratio_of_the_mixed_sampler(index):
    made = credit.interpolate(STEPS, range(50))
    generator = torch.Generator().manual_seed(index)
    latents, reference, old, noise = (torch.randn(4, 64, generator=generator, dtype=torch.float64) for _ in range(4))
    new = old + 0.1 * torch.randn(4, 64, generator=generator, dtype=torch.float64)
    step, mix = made.steps[index], made.mix[index]
    drawn, stored = step.draw(latents, reference + mix * (old - reference), noise)
    exact = step.log_prob(drawn, latents, reference + mix * (new - reference)) - stored
    ours = log_ratio(new, old, noise, weight=made.weights[index], sign=step.sign)
    torch.testing.assert_close(ours, exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize("w_star", [0.0, -1.0, math.inf, math.nan])
def test_interpolate_refuses_a_weight_that_is_none(w_star):
    with pytest.raises(CreditError, match="expected a positive, finite weight"):
        credit.interpolate(STEPS, range(50), w_star=w_star)


def dance(steps, trained=None):
    schedule = FlowSchedule.shifted(steps=steps, shift=3.0)
    made = flow_sde.steps(schedule, flow_sde.constant_noise(schedule, 0.3))
    return schedule, made, credit.proportionate_flow(schedule, made, range(steps) if trained is None else trained)


def test_flow_credit_of_sixteen_steps_is_13_343_times_the_time_covered():
    schedule, steps, made = dance(16)
    assert made.steps == steps and made.mix == (1.0,) * 16
    zetas = [weight / dt for weight, dt in zip(made.weights, schedule.dt, strict=True)]
    assert zetas == pytest.approx([13.343190914766] * 16, abs=1e-12)
    assert (round(made.weights[0], 5), round(made.weights[-1], 5)) == (0.29007, 2.22387)


def test_flow_credit_of_twenty_five_steps_has_zeta_16_847():
    schedule, _, made = dance(25)
    assert made.weights[0] / schedule.dt[0] == pytest.approx(16.84736268, abs=5e-9)


def test_flow_credit_over_some_steps_keeps_the_mean_over_those():
    schedule, steps, made = dance(16, trained=range(15))
    assert made.weights[15] == 0.0
    assert math.fsum(made.weights) == pytest.approx(math.fsum(step.weight for step in steps[:15]), rel=1e-14)
    zetas = over(range(15), [weight / dt for weight, dt in zip(made.weights, schedule.dt, strict=True)])
    assert zetas == pytest.approx([zetas[0]] * 15, rel=1e-14)


@given(flow_schedules(), st.floats(0.05, 1), st.data())
def test_flow_credit_is_proportional_to_time_and_keeps_the_mean(schedule, eta, data):
    trained = sorted(data.draw(st.sets(st.integers(0, len(schedule) - 1), min_size=1)))
    steps = flow_sde.steps(schedule, flow_sde.constant_noise(schedule, eta))
    made = credit.proportionate_flow(schedule, steps, trained)
    native = mean(steps[index].weight for index in trained)
    assert mean(over(trained, made.weights)) == pytest.approx(native, rel=1e-12)
    zeta = made.weights[trained[0]] / schedule.dt[trained[0]]
    assert over(trained, made.weights) == pytest.approx([zeta * schedule.dt[index] for index in trained], rel=1e-12)


@given(diffusion_schedules(), st.floats(0, 3), st.data())
def test_all_kinds_keep_the_mean_and_variance_is_constant_on_any_schedule(schedule, excess, data):
    trained = sorted(data.draw(st.sets(st.integers(0, len(schedule) - 1), min_size=1)))
    steps = ddim.steps(schedule)
    native = mean(steps[index].weight for index in trained)
    w_star = ddim.least_weight(schedule, trained) * (1 + excess)
    assume(w_star < 1e3)
    variance = credit.variance(schedule, trained, w_star=w_star)
    for made in (
        credit.native(steps, trained),
        credit.reweight(steps, trained),
        credit.released(schedule, trained, w_star=w_star),
        variance,
        credit.interpolate(steps, trained),
    ):
        assert made.trained == tuple(trained)
        assert mean(over(trained, made.weights)) == pytest.approx(native, rel=1e-12)
    assert [variance.steps[index].weight for index in trained] == pytest.approx([w_star] * len(trained), rel=1e-9)


@kinds
@pytest.mark.parametrize("trained", [(), (0, 0), (50,), (-1, 3)])
def test_trained_steps_that_are_none_are_refused(kind, trained):
    with pytest.raises(CreditError, match="at least one index, each once, from 0 to 49"):
        DIFFUSION_KINDS[kind](trained)


def test_training_a_deterministic_sampler_is_refused_with_the_remedy():
    for make in (credit.native, credit.reweight, credit.interpolate):
        with pytest.raises(CreditError, match=r"step 3 of 50 draws no noise.*eta or a noise level above 0"):
            make(ddim.steps(SCHEDULE, eta=0.0), (3, 4))
    schedule = FlowSchedule.shifted(steps=4, shift=3.0)
    with pytest.raises(CreditError, match="step 3 of 4 draws no noise"):
        credit.proportionate_flow(schedule, flow_sde.steps(schedule, (0.3, 0.3, 0.3, 0.0)), range(4))


def test_a_last_step_onto_the_data_may_stay_but_not_be_trained():
    schedule = sd15(50, final_alpha_bar=1.0)
    assert credit.variance(schedule, range(48)).steps[-1].std == 0
    for kind in (credit.variance, credit.released):
        with pytest.raises(CreditError, match=r"step 49 of 50 draws no noise.*set_alpha_to_one false"):
            kind(schedule, range(50))


def test_flow_credit_needs_the_schedule_that_its_steps_came_from():
    schedule, steps, _ = dance(16)
    with pytest.raises(CreditError, match="got 15 steps for a schedule of 16"):
        credit.proportionate_flow(schedule, steps[:15], range(15))


@given(diffusion_schedules(), st.floats(-0.99, 0.99), st.data())
def test_tilted_diffusion_credit_is_a_ramp_that_keeps_the_mean(schedule, slope, data):
    trained = sorted(data.draw(st.sets(st.integers(0, len(schedule) - 1), min_size=1)))
    steps = ddim.steps(schedule)
    made = credit.tilted(schedule, steps, trained, slope=slope)
    weights = over(trained, made.weights)
    assert made.steps == steps and made.trained == tuple(trained) and min(weights) > 0
    assert mean(weights) == pytest.approx(mean(steps[index].weight for index in trained), rel=1e-12)
    if len(trained) > 1:
        assert weights[0] / weights[-1] == pytest.approx((1 + slope) / (1 - slope), rel=1e-9)
        slopes = [(b - a) / (j - i) for (i, a), (j, b) in pairwise(zip(trained, weights, strict=True))]
        assert slopes == pytest.approx([slopes[0]] * len(slopes), rel=1e-6, abs=1e-12)


@given(flow_schedules(), st.floats(-0.99, 0.99))
def test_tilted_flow_credit_is_time_covered_times_a_ramp_in_time(schedule, slope):
    steps = flow_sde.steps(schedule, flow_sde.constant_noise(schedule, 0.3))
    made = credit.tilted(schedule, steps, range(len(schedule)), slope=slope)
    assert mean(made.weights) == pytest.approx(mean(step.weight for step in steps), rel=1e-12)
    middles = [(now + after) / 2 for now, after in pairwise(schedule.times)]
    ramp = [1 + slope * (2 * (m - middles[-1]) / (middles[0] - middles[-1]) - 1) for m in middles]
    zetas = [weight / dt / height for weight, dt, height in zip(made.weights, schedule.dt, ramp, strict=True)]
    assert zetas == pytest.approx([zetas[0]] * len(zetas), rel=1e-9)


def test_a_slope_above_0_favours_early_steps_and_below_0_late_ones():
    for schedule, steps in ((SCHEDULE, STEPS), dance(16)[:2]):
        level, early, late = (credit.tilted(schedule, steps, range(16), slope=slope) for slope in (0.0, 0.5, -0.5))
        assert early.weights[0] > level.weights[0] > late.weights[0]
        assert early.weights[15] < level.weights[15] < late.weights[15]


@pytest.mark.parametrize("trained", [range(50), range(48), (3, 7, 30)])
def test_without_a_slope_tilted_credit_is_reweight_to_the_bit(trained):
    assert credit.tilted(SCHEDULE, STEPS, trained, slope=0.0) == credit.reweight(STEPS, trained)


@pytest.mark.parametrize("trained", [range(16), range(15), (2,)])
def test_without_a_slope_tilted_credit_is_proportionate_to_the_bit(trained):
    schedule, steps, expected = dance(16, trained=trained)
    assert credit.tilted(schedule, steps, trained, slope=0.0) == expected


@pytest.mark.parametrize("slope", [-1.0, 1.0, 2.0, math.nan])
def test_a_slope_that_leaves_a_weight_not_positive_is_refused(slope):
    with pytest.raises(CreditError, match="between -1 and 1"):
        credit.tilted(SCHEDULE, STEPS, range(50), slope=slope)


def test_tilted_credit_needs_the_schedule_that_its_steps_came_from():
    with pytest.raises(CreditError, match="got 49 steps for a schedule of 50"):
        credit.tilted(SCHEDULE, STEPS[:49], range(49), slope=0.5)
