"""Pairs of noised images: AWM's ratio, as its published code writes it, is that of an affine step."""

import math

import pytest
import torch

from pcpo_ray.algorithm import objective
from pcpo_ray.algorithm.schedule import FlowSchedule
from pcpo_ray.algorithm.transitions import renoised

SCHEDULE = FlowSchedule.shifted(steps=6, shift=3.0)
FACTORS = {"uniform": lambda t: 1.0, "time": lambda t: t, "time_squared": lambda t: t**2}


def drawn():
    return torch.randn(4, 5, 3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("omega", FACTORS)
@pytest.mark.parametrize("index", range(6))
def test_the_log_ratio_is_the_difference_of_weighted_matching_errors(omega, index):
    """log p = -omega(t) mean((v - (eps - x0))^2), of the new velocity less that of the old one; and its gradient."""
    clean, eps, old, change = drawn()
    new = (old + 0.1 * change).requires_grad_()
    factor = FACTORS[omega](SCHEDULE.times[index])
    errors = [-factor * (velocity - (eps - clean)).square().flatten(1).mean(1) for velocity in (new, old)]
    step = renoised.steps(SCHEDULE, omega)[index]
    residual = renoised.residual(step, old, clean, eps)
    ours = objective.log_ratio(new, old, residual, weight=step.weight, sign=step.sign)
    torch.testing.assert_close(ours, errors[0] - errors[1], rtol=1e-10, atol=1e-12)
    gradients = [torch.autograd.grad(one.sum(), new)[0] for one in (ours, errors[0])]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)
    assert (step.weight, step.sign) == (pytest.approx(math.sqrt(2 * factor)), 1.0)


def test_the_step_s_log_probability_is_the_matching_error_s():
    clean, eps, old, new = drawn()
    step = renoised.steps(SCHEDULE, "time")[2]
    target, log_prob = step.draw(clean, old, renoised.residual(step, old, clean, eps))
    torch.testing.assert_close(target, step.gain * (eps - clean), rtol=1e-12, atol=1e-12)
    error = SCHEDULE.times[2] * (old - (eps - clean)).square().flatten(1).mean(1)
    torch.testing.assert_close(log_prob, -error - 0.5 * math.log(2 * math.pi), rtol=1e-12, atol=0)
    later = step.log_prob(target, clean, new) - log_prob
    ratio = objective.log_ratio(new, old, renoised.residual(step, old, clean, eps), weight=step.weight, sign=step.sign)
    torch.testing.assert_close(later, ratio, rtol=1e-10, atol=1e-12)


def test_an_image_is_noised_along_the_straight_path():
    clean, eps, *_ = drawn()
    for index, time in enumerate(SCHEDULE.times[:-1]):
        noised = renoised.noised(SCHEDULE, index, clean, eps)
        torch.testing.assert_close(noised, clean + time * (eps - clean), rtol=1e-12, atol=1e-12)
    assert torch.equal(renoised.noised(SCHEDULE, 0, clean, eps), eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_at_unchanged_weights_the_log_ratio_is_exactly_zero(dtype):
    clean, eps, old, _ = drawn().to(dtype)
    for step in renoised.steps(SCHEDULE, "time_squared"):
        residual = renoised.residual(step, old, clean, eps)
        assert residual.dtype == dtype
        assert objective.log_ratio(old, old, residual, weight=step.weight, sign=step.sign).eq(0).all()
