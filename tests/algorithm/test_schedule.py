import math

import numpy as np
import pytest
import torch

from pcpo_ray.algorithm.schedule import DiffusionSchedule, FlowSchedule
from pcpo_ray.errors import ScheduleError
from tests.support.schedules import SD15_ALPHA_BARS, sd15


def test_fifty_steps_visit_981_to_1_and_end_at_the_first_training_level():
    schedule = sd15()
    assert len(schedule) == 50
    assert schedule.timesteps[:2] == (981, 961) and schedule.timesteps[-2:] == (21, 1)
    assert schedule.alpha_bar_prev[:-1] == schedule.alpha_bar[1:]
    assert schedule.alpha_bar_prev[-1] == SD15_ALPHA_BARS[0]


@pytest.mark.parametrize("steps", [1, 7, 20, 50, 100, 999])
def test_steps_and_levels_are_those_of_diffusers_ddim_scheduler(steps):
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, set_alpha_to_one=False
    )
    scheduler.set_timesteps(steps)
    schedule = sd15(steps)
    assert schedule.timesteps == tuple(scheduler.timesteps.tolist())
    expected = scheduler.alphas_cumprod[scheduler.timesteps].double()
    torch.testing.assert_close(torch.tensor(schedule.alpha_bar, dtype=torch.float64), expected, rtol=3e-5, atol=0)


def test_offset_zero_ends_on_the_data_when_the_final_level_is_one():
    schedule = sd15(10, offset=0, final_alpha_bar=1.0)
    assert schedule.timesteps[-1] == 0 and schedule.alpha_bar_prev[-1] == 1.0


def test_a_last_step_that_would_go_nowhere_is_refused_with_the_remedy():
    with pytest.raises(ScheduleError, match=r"timestep 0 goes from .* set the offset to 1"):
        sd15(10, offset=0)


@pytest.mark.parametrize(
    ("timesteps", "alpha_bar", "alpha_bar_prev", "message"),
    [
        ((), (), (), "at least one"),
        ((2, 1), (0.5,), (0.9,), "the same number"),
        ((1, 2), (0.5, 0.9), (0.9, 0.99), "fall strictly"),
        ((1, -1), (0.5, 0.9), (0.9, 0.99), "at or above 0"),
        ((2, 1), (0.9, 0.5), (0.5, 0.3), "removes noise"),
        ((1,), (0.5,), (1.1,), "removes noise"),
        ((1,), (math.nan,), (0.9,), "removes noise"),
    ],
)
def test_a_schedule_that_is_none_is_refused(timesteps, alpha_bar, alpha_bar_prev, message):
    with pytest.raises(ScheduleError, match=message):
        DiffusionSchedule(timesteps=timesteps, alpha_bar=alpha_bar, alpha_bar_prev=alpha_bar_prev)


def test_a_flow_schedule_falls_to_zero_and_its_time_steps_add_up_to_one():
    schedule = FlowSchedule.shifted(steps=16, shift=3.0)
    assert len(schedule) == len(schedule.dt) == len(schedule.timesteps) == 16
    assert schedule.times[0] == 1 and schedule.times[-1] == 0
    assert math.fsum(schedule.dt) == pytest.approx(1, abs=1e-15)
    assert schedule.timesteps[1] == pytest.approx(1000 * (3 * 15 / 16) / (1 + 2 * 15 / 16), rel=1e-14)


def test_a_shift_of_one_leaves_even_steps():
    assert FlowSchedule.shifted(steps=4, shift=1.0).times == (1.0, 0.75, 0.5, 0.25, 0.0)


def test_the_flow_grid_is_that_of_diffusers_euler_scheduler():
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 16, 16).tolist())
    schedule = FlowSchedule.shifted(steps=16, shift=3.0)
    assert schedule.times == pytest.approx(scheduler.sigmas.tolist(), abs=2e-7)
    assert schedule.timesteps == pytest.approx(scheduler.timesteps.tolist(), abs=2e-4)


@pytest.mark.parametrize("times", [(0.0,), (1.0, 0.5), (0.5, 0.5, 0.0), (0.2, 0.5, 0.0), (1.2, 0.5, 0.0)])
def test_flow_times_that_do_not_fall_to_zero_are_refused(times):
    with pytest.raises(ScheduleError, match="falling strictly from at most 1 to exactly 0"):
        FlowSchedule(times=times)


@pytest.mark.parametrize(("steps", "shift"), [(0, 3.0), (4, 0.0), (4, math.nan)])
def test_flow_steps_that_cannot_be_are_refused(steps, shift):
    with pytest.raises(ScheduleError, match="expected at least 1 step and a shift above 0"):
        FlowSchedule.shifted(steps=steps, shift=shift)
