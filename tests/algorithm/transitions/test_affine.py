import math

import pytest
import torch

from pcpo_ray.algorithm.objective import log_ratio
from pcpo_ray.algorithm.transitions import AffineStep, ddim
from pcpo_ray.errors import ScheduleError
from tests.support.schedules import sd15

STEP = AffineStep(scale=1.1, gain=-0.3, std=0.2)


def tensors(*, dtype=torch.float64, shape=(3, 2, 4, 4)):
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3))


def test_a_draw_is_the_affine_map_with_the_mean_gaussian_log_density():
    latents, prediction, noise = tensors()
    drawn, log_prob = STEP.draw(latents, prediction, noise)
    mean = 1.1 * latents - 0.3 * prediction
    torch.testing.assert_close(drawn, mean + 0.2 * noise, rtol=0, atol=1e-14)
    expected = torch.distributions.Normal(mean, 0.2).log_prob(drawn).flatten(1).mean(1)
    torch.testing.assert_close(log_prob, expected, rtol=0, atol=1e-12)


def test_in_float64_the_replay_finds_the_log_prob_that_was_drawn():
    latents, prediction, noise = tensors()
    drawn, log_prob = STEP.draw(latents, prediction, noise)
    torch.testing.assert_close(STEP.log_prob(drawn, latents, prediction), log_prob, rtol=0, atol=1e-12)


def test_half_latents_stay_half_while_the_log_prob_is_float32():
    latents, prediction, noise = tensors(dtype=torch.bfloat16)
    drawn, log_prob = STEP.draw(latents, prediction, noise)
    assert drawn.dtype == torch.bfloat16 and log_prob.dtype == torch.float32
    _, exact = STEP.draw(latents.double(), prediction.double(), noise.double())
    torch.testing.assert_close(log_prob.double(), exact, rtol=0, atol=1e-6)


def test_weight_is_gain_over_std_and_sign_that_of_minus_gain():
    assert STEP.weight == pytest.approx(1.5, rel=1e-15) and STEP.sign == 1.0
    assert AffineStep(scale=1.0, gain=0.3, std=0.2).sign == -1.0
    assert AffineStep(scale=1.0, gain=0.0, std=0.2).weight == 0.0


def test_a_step_without_noise_is_a_point_mass():
    latents, prediction, noise = tensors()
    step = AffineStep(scale=1.1, gain=-0.3, std=0.0)
    drawn, log_prob = step.draw(latents, prediction, noise)
    torch.testing.assert_close(drawn, 1.1 * latents - 0.3 * prediction, rtol=0, atol=0)
    assert step.weight == math.inf and log_prob.tolist() == [math.inf] * 3
    assert step.log_prob(drawn, latents, prediction).tolist() == [math.inf] * 3
    drawn[1, 0, 0, 0] += 1e-3
    assert step.log_prob(drawn, latents, prediction).tolist() == [math.inf, -math.inf, math.inf]


@pytest.mark.parametrize(("gain", "std"), [(-0.3, -0.1), (math.nan, 0.1), (-0.3, math.nan), (math.inf, 0.1)])
def test_numbers_that_are_no_step_are_refused(gain, std):
    with pytest.raises(ScheduleError, match="expected finite numbers and std >= 0"):
        AffineStep(scale=1.0, gain=gain, std=std)


def test_a_bfloat16_replay_errs_where_the_decomposed_ratio_is_zero():
    """rms 3.4e-5 at t=981 and 8e-4 at t=21 at D = 16,384; here, with data of unit variance, 16% of the pairs clip."""
    schedule, generator = sd15(), torch.Generator().manual_seed(0)
    rms, clipped = {}, []
    for timestep, level, step in zip(schedule.timesteps, schedule.alpha_bar, ddim.steps(schedule), strict=True):
        clean, epsilon, noise = (torch.randn(16, 16_384, generator=generator) for _ in range(3))
        latents = level**0.5 * clean + (1 - level) ** 0.5 * epsilon
        drawn, stored = step.draw(latents, epsilon, noise)
        error = step.log_prob(drawn.bfloat16(), latents, epsilon) - stored
        rms[timestep] = error.square().mean().sqrt().item()
        clipped.append((error.abs() > 1e-4).float().mean().item())
        assert log_ratio(epsilon, epsilon, noise, weight=step.weight, sign=step.sign).eq(0).all()
    assert rms[981] == pytest.approx(3.4e-5, rel=0.5)
    assert rms[21] == pytest.approx(8e-4, rel=0.5)
    assert 0.1 < sum(clipped) / 50 < 0.25
