import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pcpo_ray.algorithm.schedule import DiffusionSchedule
from pcpo_ray.algorithm.transitions import ddim
from pcpo_ray.errors import CreditError, ScheduleError
from tests.support.schedules import SD15_ALPHA_BARS, diffusion_schedules, sd15

NATIVE = dict(zip(sd15().timesteps, (step.weight for step in ddim.steps(sd15())), strict=True))


def mean(values):
    return math.fsum(values) / len(values)


@pytest.mark.parametrize(
    ("timestep", "weight"),
    [(981, 0.513), (441, 0.374), (181, 0.448), (101, 0.571), (61, 0.757), (41, 1.017), (21, 3.275), (1, 1.003)],
)
def test_native_weights_of_fifty_steps(timestep, weight):
    assert NATIVE[timestep] == pytest.approx(weight, abs=5.01e-4)


def test_the_least_of_the_fifty_weights_is_at_timestep_441():
    assert min(NATIVE, key=NATIVE.__getitem__) == 441


@pytest.mark.parametrize(("count", "expected"), [(50, 0.516900), (49, 0.506976), (48, 0.449313)])
def test_native_means_of_fifty_steps(count, expected):
    assert mean(list(NATIVE.values())[:count]) == pytest.approx(expected, abs=5e-7)


@pytest.mark.parametrize(
    ("steps", "left_out", "expected", "digits"),
    [
        (50, 0, 3.2748, 4),
        (50, 1, 3.2748, 4),
        (50, 2, 1.0173, 4),
        (50, 3, 0.7573, 4),
        (20, 0, 5.43, 2),
        (20, 2, 1.14, 2),
        (100, 0, 2.28, 2),
        (100, 2, 0.945, 3),
    ],
)
def test_least_common_weight(steps, left_out, expected, digits):
    assert round(ddim.least_weight(sd15(steps), range(steps - left_out)), digits) == expected


@pytest.mark.parametrize(("left_out", "eta"), [(2, 0.24), (3, 0.34)])
def test_trained_steps_at_the_least_common_weight_draw_noise_like_this_eta(left_out, eta):
    schedule, trained = sd15(), range(50 - left_out)
    least = ddim.least_weight(schedule, trained)
    drawn = math.fsum(ddim.minus_sigma(schedule, index, least) ** 2 for index in trained)
    native = math.fsum(step.std**2 for step in ddim.steps(schedule)[: len(trained)])
    assert round(math.sqrt(drawn / native), 2) == eta


def test_seven_of_fifty_steps_cannot_have_the_native_mean():
    schedule, wanted = sd15(), mean(NATIVE.values())
    refused = []
    for index in range(50):
        try:
            ddim.minus_sigma(schedule, index, wanted)
        except CreditError:
            refused.append(index)
    assert len(refused) == 7


def test_an_infeasible_weight_is_refused_with_its_step_and_the_least_one():
    with pytest.raises(CreditError, match=r"timestep 21 the weight 0\.5169: the least it can have is 3\.27479"):
        ddim.minus_sigma(sd15(), 48, 0.5169)
    with pytest.raises(CreditError, match="finite"):
        ddim.plus_sigma(sd15(), 0, math.inf)


def test_the_plus_root_is_valid_up_to_1_07_at_one_step_and_3_42_at_another():
    bounds = [math.sqrt(1 + weight**2) for weight in NATIVE.values()]
    assert round(min(bounds), 2) == 1.07 and round(max(bounds), 2) == 3.42


def at(schedule: DiffusionSchedule, index: int, sigma: float):
    """c1, c2 and the weight that step `index` really has with this sigma, in the paper's own form."""
    now, after = schedule.alpha_bar[index], schedule.alpha_bar_prev[index]
    c1, c2 = math.sqrt((1 - now) * after / now), math.sqrt(max(0.0, 1 - after - sigma**2))
    sigmas = [0.0] * len(schedule)
    sigmas[index] = sigma
    return c1, c2, ddim.steps_with_sigma(schedule, sigmas)[index].weight


@given(diffusion_schedules(), st.floats(0, 5), st.data())
def test_the_minus_root_gives_every_step_the_weight_it_was_asked_for(schedule, excess, data):
    index = data.draw(st.integers(0, len(schedule) - 1))
    w_star = ddim.least_weight(schedule, [index]) * (1 + excess)
    _, _, weight = at(schedule, index, ddim.minus_sigma(schedule, index, w_star))
    assert weight == pytest.approx(w_star, rel=1e-9)


@given(diffusion_schedules(), st.floats(0, 5), st.data())
def test_the_plus_root_solves_the_other_equation_past_its_bound(schedule, excess, data):
    index = data.draw(st.integers(0, len(schedule) - 1))
    least = ddim.least_weight(schedule, [index])
    w_star = least * (1 + excess)
    sigma = ddim.plus_sigma(schedule, index, w_star)
    c1, c2, weight = at(schedule, index, sigma)
    if w_star <= math.sqrt(1 + least**2):
        assert weight == pytest.approx(w_star, rel=1e-6)
    else:
        assert (c1 + c2) / sigma == pytest.approx(w_star, rel=1e-6)
        assert weight <= w_star * (1 + 1e-6)


@given(diffusion_schedules(), st.floats(0, 5), st.data())
def test_both_roots_are_those_of_the_textbook_quadratic(schedule, excess, data):
    index = data.draw(st.integers(0, len(schedule) - 1))
    w = ddim.least_weight(schedule, [index]) * (1 + excess)
    c1, _, _ = at(schedule, index, 0.0)
    b = 1 - schedule.alpha_bar_prev[index]
    root = math.sqrt(max(0.0, b * (1 + w**2) - c1**2))
    # near the double root the square root halves the digits that rounding leaves
    assert ddim.plus_sigma(schedule, index, w) == pytest.approx((w * c1 + root) / (1 + w**2), rel=1e-5)
    assert ddim.minus_sigma(schedule, index, w) == pytest.approx((w * c1 - root) / (1 + w**2), rel=1e-5)


@given(diffusion_schedules(), st.floats(0.01, 1))
def test_eta_one_gives_the_least_weight_of_every_step_in_closed_form(schedule, eta):
    for index, (step, other) in enumerate(zip(ddim.steps(schedule), ddim.steps(schedule, eta=eta), strict=True)):
        after = schedule.alpha_bar_prev[index]
        alpha, b = schedule.alpha_bar[index] / after, 1 - after
        assert step.weight == pytest.approx(math.sqrt((1 - alpha) / (alpha * b)), rel=1e-9)
        assert step.weight == pytest.approx(ddim.least_weight(schedule, [index]), rel=1e-9)
        assert step.std**2 == pytest.approx(b / (1 - schedule.alpha_bar[index]) * (1 - alpha), rel=1e-9)
        assert other.weight >= step.weight * (1 - 1e-9)
        assert step.sign == other.sign == 1.0


@given(diffusion_schedules(), st.floats(-3, 3), st.data())
def test_marginals_are_exact_for_a_known_image_whatever_the_noise(schedule, image, data):
    """x_t ~ N(sqrt(ab) x0, 1 - ab) with epsilon = (x_t - sqrt(ab) x0) / sqrt(1 - ab) goes to ab_prev's Gaussian."""
    shares = data.draw(st.lists(st.floats(0, 1), min_size=len(schedule), max_size=len(schedule)))
    sigmas = [share * math.sqrt(1 - after) for share, after in zip(shares, schedule.alpha_bar_prev, strict=True)]
    levels = zip(schedule.alpha_bar, schedule.alpha_bar_prev, ddim.steps_with_sigma(schedule, sigmas), strict=True)
    for now, after, step in levels:
        assert step.scale * math.sqrt(now) * image == pytest.approx(math.sqrt(after) * image, rel=1e-12)
        variance = (step.scale * math.sqrt(1 - now) + step.gain) ** 2 + step.std**2
        assert variance == pytest.approx(1 - after, rel=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_a_whole_trajectory_is_diffusers_own_with_the_same_noise(eta):
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        clip_sample=False, steps_offset=1, set_alpha_to_one=False,
    )  # fmt: skip
    scheduler.alphas_cumprod = torch.tensor(SD15_ALPHA_BARS, dtype=torch.float64)
    scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    scheduler.set_timesteps(50)
    schedule, generator = sd15(), torch.Generator().manual_seed(0)
    ours = theirs = torch.randn(2, 4, 8, 8, generator=generator, dtype=torch.float64)
    for timestep, step in zip(schedule.timesteps, ddim.steps(schedule, eta=eta), strict=True):
        prediction, noise = (torch.randn(ours.shape, generator=generator, dtype=torch.float64) for _ in range(2))
        ours, _ = step.draw(ours, prediction, noise)
        theirs = scheduler.step(prediction, timestep, theirs, eta=eta, variance_noise=noise).prev_sample
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_a_step_onto_the_data_draws_no_noise_and_has_no_finite_weight():
    schedule = sd15(50, final_alpha_bar=1.0)
    assert ddim.steps(schedule)[-1].std == 0 and ddim.steps(schedule)[-1].weight == math.inf
    with pytest.raises(CreditError, match="timestep 1 ends without noise"):
        ddim.least_weight(schedule, range(50))


@pytest.mark.parametrize("eta", [-0.1, 5.0, math.nan])
def test_an_eta_without_room_is_refused(eta):
    with pytest.raises(ScheduleError, match="all the noise that is left after it"):
        ddim.steps(sd15(), eta=eta)


def test_sigmas_must_be_one_a_step():
    with pytest.raises(ScheduleError, match="got 2 sigmas for 50 steps"):
        ddim.steps_with_sigma(sd15(), [0.1, 0.1])
