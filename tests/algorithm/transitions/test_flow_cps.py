import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pcpo_ray.algorithm import credit
from pcpo_ray.algorithm.schedule import FlowSchedule
from pcpo_ray.algorithm.transitions import flow_cps, flow_sde
from pcpo_ray.algorithm.transitions.flow_cps import least_zeta, proportionate_noise, renewed_noise
from pcpo_ray.errors import CreditError, ScheduleError
from tests.support.schedules import flow_schedules

SHIFTED = FlowSchedule.shifted(steps=16, shift=3.0)
EVEN = FlowSchedule.shifted(steps=16, shift=1.0)


def least_of_all(schedule):
    return max(least_zeta(schedule, index) for index in range(len(schedule) - 1))


def dance_zeta(schedule):
    """At which the mean weight of the noisy steps is that of DanceGRPO's sampler."""
    native = [step.weight for step in flow_sde.steps(schedule, flow_sde.constant_noise(schedule, 0.3))[:-1]]
    return math.fsum(native) / math.fsum(schedule.dt[:-1])


def proportionate(schedule, zeta=None):
    return flow_cps.steps(schedule, proportionate_noise(schedule, zeta))


@pytest.mark.parametrize("eta", [0.01, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("schedule", [EVEN, SHIFTED], ids=["even", "shifted"])
def test_the_step_is_both_ends_of_the_path_put_together_anew(schedule, eta):
    x, v, z = (torch.randn(2, 3, generator=torch.Generator().manual_seed(k), dtype=torch.float64) for k in range(3))
    steps = flow_cps.steps(schedule, renewed_noise(schedule, eta))
    for t, after, step in zip(schedule.times, schedule.times[1:], steps, strict=False):
        data, noise = x - t * v, x + (1 - t) * v
        sigma = after * math.sin(eta * math.pi / 2)
        expected = (1 - after) * data + math.sqrt(max(0.0, after**2 - sigma**2)) * noise + sigma * z
        torch.testing.assert_close(step.draw(x, v, z)[0], expected, rtol=0, atol=1e-13)
        assert step.std == sigma and step.sign == 1.0


@given(flow_schedules())
def test_without_fresh_noise_it_is_the_ode_s_step_to_the_bit(schedule):
    none = (0.0,) * len(schedule)
    made = flow_cps.steps(schedule, none)
    for one, other, dt in zip(made, flow_sde.steps(schedule, none), schedule.dt, strict=True):
        assert (one.scale, one.gain, one.std) == (other.scale, other.gain, 0.0) == (1.0, -dt, 0.0)


def spread_along(schedule, steps, spread):
    """After each step, (time, variance) with the exact velocity for data N(0, spread^2), from their marginal."""
    time = schedule.times[0]
    variance = (1 - time) ** 2 * spread**2 + time**2
    for time, after, step in zip(schedule.times, schedule.times[1:], steps, strict=False):
        slope = (time - (1 - time) * spread**2) / ((1 - time) ** 2 * spread**2 + time**2)  # of E[eps - x0 | x] in x
        variance = (step.scale + step.gain * slope) ** 2 * variance + step.std**2
        yield after, variance


SAMPLERS = {
    "eta 0.3": lambda schedule: renewed_noise(schedule, 0.3),
    "eta 0.8": lambda schedule: renewed_noise(schedule, 0.8),
    "eta 1": lambda schedule: renewed_noise(schedule, 1.0),
    "least zeta": proportionate_noise,
    "three times the least": lambda schedule: proportionate_noise(schedule, 3 * least_of_all(schedule)),
}


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [2, 5, 16])
def test_around_one_image_the_noise_is_the_time_s_however_long_the_steps(sampler, steps):
    schedule = FlowSchedule.shifted(steps=steps, shift=3.0)
    made = flow_cps.steps(schedule, SAMPLERS[sampler](schedule))
    for after, variance in spread_along(schedule, made, spread=0.0):
        assert variance == pytest.approx(after**2, rel=1e-12, abs=1e-30)


def test_the_sde_leaves_more_noise_than_its_time_says():
    """What this sampler is for, and that the test above has teeth."""
    made = flow_sde.steps(SHIFTED, flow_sde.constant_noise(SHIFTED, 0.3))
    excess = [variance / after**2 - 1 for after, variance in spread_along(SHIFTED, made, spread=0.0) if after > 0]
    assert min(excess) > 0 and max(excess) > 0.1


@pytest.mark.parametrize("time", [0.9, 0.5, 0.2])
@pytest.mark.parametrize("spread", [0.3, 2.0])
def test_a_step_keeps_the_variance_with_an_error_of_second_order_in_dt(time, spread):
    """With as much noise as an SDE's step has, a deviation in proportion to sqrt(dt)."""

    def error(dt):
        schedule = FlowSchedule(times=(time, time - dt, 0.0))
        made = flow_cps.steps(schedule, (0.3 * math.sqrt(dt), 0.0))
        after, variance = next(spread_along(schedule, made, spread))
        return abs(variance - ((1 - after) ** 2 * spread**2 + after**2))

    assert error(1e-3) < 1e-4
    assert error(1e-3) / error(5e-4) == pytest.approx(4, rel=0.05)
    assert error(5e-4) / error(2.5e-4) == pytest.approx(4, rel=0.05)


def test_more_steps_of_proportionate_noise_approach_the_marginals():
    def error(steps):
        schedule = FlowSchedule.shifted(steps=steps, shift=3.0)
        return max(
            abs(variance - ((1 - after) ** 2 * 0.25 + after**2))
            for after, variance in spread_along(schedule, proportionate(schedule), spread=0.5)
        )

    assert error(1600) < error(400) / 2 < error(100) / 4
    assert error(1600) < 5e-3


@given(flow_schedules(), st.floats(1, 100))
def test_every_noisy_step_has_the_weight_zeta_dt(schedule, factor):
    zeta = factor * least_of_all(schedule)
    steps = proportionate(schedule, zeta)
    assert [step.weight for step in steps[:-1]] == pytest.approx([zeta * dt for dt in schedule.dt[:-1]], rel=1e-12)
    assert steps[-1].std == 0
    assert all(0 < step.std <= after for step, after in zip(steps, schedule.times[1:-1], strict=False))


@pytest.mark.parametrize("schedule", [EVEN, SHIFTED], ids=["even", "shifted"])
def test_null_is_the_least_zeta_of_all_and_makes_the_most_noise(schedule):
    least = least_of_all(schedule)
    steps = proportionate(schedule)
    assert steps == proportionate(schedule, least)
    assert [step.weight for step in steps[:-1]] == pytest.approx([least * dt for dt in schedule.dt[:-1]], rel=1e-12)
    more = proportionate(schedule, 1.5 * least)
    assert all(one.std > other.std for one, other in zip(steps[:-1], more[:-1], strict=True))


@given(flow_schedules(), st.data())
def test_no_noise_gives_a_step_a_smaller_weight_than_its_least_zeta(schedule, data):
    index = data.draw(st.integers(0, len(schedule) - 2))
    least = least_zeta(schedule, index) * schedule.dt[index]
    time, after = schedule.times[index : index + 2]
    alone = FlowSchedule(times=(time, after, 0.0))
    sigmas = [after * 1.02**-k for k in range(400)]
    found = min(flow_cps.steps(alone, (sigma, 0.0))[0].weight for sigma in sigmas)
    assert least * (1 - 1e-12) <= found <= least * 1.001


def test_the_weight_is_what_the_log_probability_answers_to_the_prediction():
    """By autograd: the gradient of the mean log-density with respect to v, at the noise z, is -sign w z / D."""
    steps = proportionate(SHIFTED, dance_zeta(SHIFTED))
    for index in (0, 7, 14):
        x, v, z = (torch.randn(1, 5, generator=torch.Generator().manual_seed(k), dtype=torch.float64) for k in range(3))
        drawn, _ = steps[index].draw(x, v, z)
        v.requires_grad_()
        steps[index].log_prob(drawn, x, v).sum().backward()
        expected = -dance_zeta(SHIFTED) * SHIFTED.dt[index] * z / 5
        torch.testing.assert_close(v.grad, expected, rtol=1e-9, atol=1e-12)


def test_dance_grpo_s_mean_weight_is_feasible_with_shift_3_alone():
    weights = [step.weight for step in proportionate(SHIFTED, dance_zeta(SHIFTED))[:-1]]
    native = [step.weight for step in flow_sde.steps(SHIFTED, flow_sde.constant_noise(SHIFTED, 0.3))[:-1]]
    assert math.fsum(weights) == pytest.approx(math.fsum(native), rel=1e-12)
    assert (round(dance_zeta(SHIFTED), 3), round(least_of_all(SHIFTED), 3)) == (14.011, 9.95)
    with pytest.raises(CreditError, match=r"step \d+ of 16 .* zeta 14\.2"):
        proportionate(EVEN, dance_zeta(EVEN))
    assert (round(dance_zeta(EVEN), 3), round(least_of_all(EVEN), 3)) == (14.257, 26.533)


@given(flow_schedules(), st.floats(1, 10))
def test_native_credit_on_it_is_proportionate_credit(schedule, factor):
    steps = proportionate(schedule, factor * least_of_all(schedule))
    trained = range(len(schedule) - 1)
    native, reweighted = credit.native(steps, trained), credit.proportionate_flow(schedule, steps, trained)
    assert native.steps == reweighted.steps
    assert native.weights == pytest.approx(reweighted.weights, rel=1e-12)


@pytest.mark.parametrize("zeta", [9.9, 0.0, math.inf, math.nan])
def test_a_zeta_out_of_reach_is_refused_with_the_step_and_its_least(zeta):
    message = r"step \d+ of 16 \(t from .*\) the weight zeta dt with zeta .*: the least .* all steps together 9\.94987"
    with pytest.raises(CreditError, match=message):
        proportionate_noise(SHIFTED, zeta)
    with pytest.raises(CreditError, match=r"step 14 of 16 \(t from 0\.3 to 0\.166667\) .* it can have is 9\.94987"):
        proportionate_noise(SHIFTED, 9.9)


def test_one_step_alone_has_no_noise_and_no_least():
    one = FlowSchedule(times=(1.0, 0.0))
    assert proportionate_noise(one) == (0.0,) and least_zeta(one, 0) == math.inf


@pytest.mark.parametrize(
    ("sigmas", "message"),
    [
        ((0.1,), "got 1 sigmas for 2 steps"),
        ((0.6, 0.0), r"step 0 of 2 \(t from 1 to 0\.5\) got sigma 0\.6; expected 0 to 0\.5"),
        ((0.1, 0.1), r"step 1 of 2 \(t from 0\.5 to 0\) got sigma 0\.1; expected 0 to 0"),
        ((-0.1, 0.0), "expected 0 to"),
        ((math.nan, 0.0), "expected 0 to"),
    ],
)
def test_sigmas_that_are_none_are_refused(sigmas, message):
    with pytest.raises(ScheduleError, match=message):
        flow_cps.steps(FlowSchedule(times=(1.0, 0.5, 0.0)), sigmas)


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan])
def test_a_share_of_fresh_noise_that_is_none_is_refused(eta):
    with pytest.raises(ScheduleError, match="got eta"):
        renewed_noise(SHIFTED, eta)
