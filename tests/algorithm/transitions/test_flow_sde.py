import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pcpo_ray.algorithm.schedule import FlowSchedule
from pcpo_ray.algorithm.transitions import flow_sde
from pcpo_ray.errors import ScheduleError
from tests.support.schedules import flow_schedules

DANCE_16 = (
    0.49147, 0.51384, 0.53837, 0.56539, 0.59531, 0.62865, 0.66604, 0.70831,
    0.75654, 0.81219, 0.87732, 0.95501, 1.05026, 1.17253, 1.34496, 1.66701,
)  # fmt: skip


def weights(schedule, levels):
    return [step.weight for step in flow_sde.steps(schedule, levels)]


def test_dance_grpo_weights_of_sixteen_steps():
    schedule = FlowSchedule.shifted(steps=16, shift=3.0)
    native = weights(schedule, flow_sde.constant_noise(schedule, 0.3))
    assert tuple(round(weight, 5) for weight in native) == DANCE_16
    assert math.fsum(native) == pytest.approx(13.343190914766, abs=5e-13)


def test_dance_grpo_weights_of_twenty_five_steps():
    schedule = FlowSchedule.shifted(steps=25, shift=3.0)
    native = weights(schedule, flow_sde.constant_noise(schedule, 0.3))
    assert (round(native[0], 5), round(native[-1], 5)) == (0.39014, 1.51111)
    assert math.fsum(native) == pytest.approx(16.84736268, abs=5e-9)


def test_flow_grpo_zeta_follows_if_the_first_weight_equals_the_second():
    schedule = FlowSchedule.shifted(steps=10, shift=3.0)
    native = weights(schedule, flow_sde.ratio_noise(schedule, 0.7))
    assert native[1] + sum(native[1:]) == pytest.approx(4.3152134639895925, rel=1e-15)
    assert round(sum(native), 5) == 4.29675
    assert (round(native[0], 5), round(native[1], 5)) == (0.05102, 0.06948)


def test_the_weights_on_diffusers_sd3_grid_add_up_to_5_705():
    """Shifted twice: once when the scheduler is made and again when its steps are set."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(10)
    least = 3 * 0.001 / 1.002
    even = [1 + (least - 1) * k / 9 for k in range(10)]
    schedule = FlowSchedule(times=(*(3 * u / (1 + 2 * u) for u in even), 0.0))
    assert schedule.times == pytest.approx(scheduler.sigmas.tolist(), abs=2e-7)
    assert [round(time, 5) for time in schedule.times] == [
        1, 0.96013, 0.91335, 0.85769, 0.79037, 0.70728, 0.60215, 0.46488, 0.27805, 0.00893, 0
    ]  # fmt: skip
    native = weights(schedule, flow_sde.ratio_noise(schedule, 0.7))
    assert math.fsum(native) == pytest.approx(5.705396, abs=5e-7)
    assert math.fsum(native[:9]) == pytest.approx(3.934783, abs=5e-7)


@given(flow_schedules(), st.floats(0.01, 2))
def test_weights_follow_the_closed_form_and_the_sign_is_always_one(schedule, eta):
    steps = flow_sde.steps(schedule, flow_sde.constant_noise(schedule, eta))
    for time, dt, step in zip(schedule.times, schedule.dt, steps, strict=False):
        expected = math.sqrt(dt) / eta * (1 + (1 - time) * eta**2 / (2 * time))
        assert step.weight == pytest.approx(expected, rel=1e-12)
        assert step.sign == 1.0


def test_the_step_is_the_sde_as_it_is_written():
    schedule = FlowSchedule(times=(0.8, 0.6, 0.0))
    x, v, z = (torch.randn(2, 3, generator=torch.Generator().manual_seed(k), dtype=torch.float64) for k in range(3))
    drawn, _ = flow_sde.steps(schedule, (0.4, 0.0))[0].draw(x, v, z)
    expected = x - 0.2 * (v + 0.16 / 1.6 * (x + 0.2 * v)) + 0.4 * math.sqrt(0.2) * z
    torch.testing.assert_close(drawn, expected, rtol=0, atol=1e-14)


def test_without_noise_a_trajectory_is_that_of_diffusers_euler_scheduler():
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 16, 16).tolist())
    schedule, generator = FlowSchedule.shifted(steps=16, shift=3.0), torch.Generator().manual_seed(0)
    ours = theirs = torch.randn(2, 4, 8, 8, generator=generator)
    for timestep, step in zip(scheduler.timesteps, flow_sde.steps(schedule, (0.0,) * 16), strict=True):
        assert step.std == 0 and step.scale == 1
        velocity, noise = (torch.randn(ours.shape, generator=generator) for _ in range(2))
        ours, _ = step.draw(ours, velocity, noise)
        theirs = scheduler.step(velocity, timestep, theirs).prev_sample
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def moments_after(time: float, dt: float, sigma: float, center: float, spread: float) -> tuple[float, float]:
    """Mean and variance after one step from t, with the exact velocity for data N(center, spread^2)."""
    mean, variance = (1 - time) * center, (1 - time) ** 2 * spread**2 + time**2
    # v = E[eps - x0 | x] = slope (x - mean) - center, by the regression of Gaussians
    slope = (time - (1 - time) * spread**2) / variance
    step = flow_sde.steps(FlowSchedule(times=(time, time - dt, 0.0)), (sigma, 0.0))[0]
    after = step.scale * mean + step.gain * -center
    return after, (step.scale + step.gain * slope) ** 2 * variance + step.std**2


@pytest.mark.parametrize("sigma", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("time", [0.9, 0.5, 0.2])
@pytest.mark.parametrize("spread", [0.3, 2.0])
def test_the_sde_keeps_the_marginals_with_an_error_of_second_order_in_dt(sigma, time, spread):
    def error(dt):
        mean, variance = moments_after(time, dt, sigma, center=1.5, spread=spread)
        assert mean == pytest.approx((1 - time + dt) * 1.5, rel=1e-12)  # exact: the mean moves in a straight line
        return abs(variance - ((1 - time + dt) ** 2 * spread**2 + (time - dt) ** 2))

    assert error(1e-3) < 1e-4
    assert error(1e-3) / error(5e-4) == pytest.approx(4, rel=0.05)
    assert error(5e-4) / error(2.5e-4) == pytest.approx(4, rel=0.05)


def test_a_pull_of_the_wrong_size_would_not_keep_the_marginals():
    """The test above has teeth: half the drift correction leaves an error of first order."""
    time, sigma, spread = 0.5, 1.0, 2.0

    def error(dt):
        variance = (1 - time) ** 2 * spread**2 + time**2
        slope = (time - (1 - time) * spread**2) / variance
        pull = sigma**2 / (4 * time)
        after = (1 - dt * pull - dt * (1 + (1 - time) * pull) * slope) ** 2 * variance + sigma**2 * dt
        return abs(after - ((1 - time + dt) ** 2 * spread**2 + (time - dt) ** 2))

    assert error(1e-3) / error(5e-4) == pytest.approx(2, rel=0.05)


def test_ratio_noise_takes_the_next_time_only_where_its_own_leaves_no_room():
    schedule = FlowSchedule(times=(1.0, 0.75, 0.5, 0.0))
    assert flow_sde.ratio_noise(schedule, 0.7) == pytest.approx((0.7 * 2, 0.7 * math.sqrt(3), 0.7), rel=1e-15)


def test_ratio_noise_of_one_step_from_pure_noise_is_refused():
    with pytest.raises(ScheduleError, match="use at least 2 steps"):
        flow_sde.ratio_noise(FlowSchedule(times=(1.0, 0.0)), 0.7)


@pytest.mark.parametrize(
    ("levels", "message"),
    [((0.3,), "got 1 noise levels for 2 steps"), ((0.3, -0.1), "at or above 0"), ((0.3, math.nan), "at or above 0")],
)
def test_noise_levels_that_are_none_are_refused(levels, message):
    with pytest.raises(ScheduleError, match=message):
        flow_sde.steps(FlowSchedule(times=(1.0, 0.5, 0.0)), levels)
