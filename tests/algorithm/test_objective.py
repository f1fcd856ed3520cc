import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pcpo_ray.algorithm.objective import (
    StepDiagnostics,
    clipped_ratio,
    gradient_norm,
    importance,
    inactive,
    log_hinge,
    log_ratio,
    rounded,
    spread,
    spread_in_numbers,
)
from pcpo_ray.algorithm.schedule import FlowSchedule
from pcpo_ray.algorithm.transitions import AffineStep, ddim, flow_sde
from pcpo_ray.errors import ConfigError, TrainingError
from tests.support.schedules import sd15

XI = 1e-4
LOSSES = {"clipped_ratio": clipped_ratio, "log_hinge": log_hinge}
objectives = pytest.mark.parametrize("objective", list(LOSSES))


def draws(seed=0, *, shape=(5, 3, 8, 8), change=0.05):
    """A prediction, the old one, and the noise, in float64."""
    generator = torch.Generator().manual_seed(seed)
    old, noise, d = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    return old + change * d, old, noise


def some_steps():
    schedule = FlowSchedule.shifted(steps=16, shift=3.0)
    return (
        *(ddim.steps(sd15())[index] for index in (0, 27, 48, 49)),
        *(flow_sde.steps(schedule, flow_sde.constant_noise(schedule, 0.3))[index] for index in (0, 8, 15)),
        AffineStep(scale=0.9, gain=0.4, std=0.3),
    )


# -- the log-ratio -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", some_steps())
def test_the_decomposed_log_ratio_is_the_exact_one_of_two_gaussians(step):
    new, old, noise = draws()
    latents = torch.randn(new.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    drawn, stored = step.draw(latents, old, noise)
    mean, old_mean = (step.scale * latents + step.gain * prediction for prediction in (new, old))
    normal = torch.distributions.Normal
    exact = (normal(mean, step.std).log_prob(drawn) - normal(old_mean, step.std).log_prob(drawn)).flatten(1).mean(1)
    ours = log_ratio(new, old, noise, weight=step.weight, sign=step.sign)
    torch.testing.assert_close(ours, exact, rtol=0, atol=1e-12)
    torch.testing.assert_close(step.log_prob(drawn, latents, new) - stored, exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_at_unchanged_weights_the_log_ratio_is_exactly_zero_in_every_dtype(dtype):
    _, old, noise = draws()
    values = log_ratio(old.to(dtype), old.to(dtype), noise.to(dtype), weight=3.27, sign=1.0)
    assert values.eq(0).all()
    assert values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@given(st.floats(1e-3, 5), st.sampled_from([-1.0, 1.0]), st.floats(1e-4, 1), st.integers(0, 5))
def test_exchanging_the_policies_negates_the_log_ratio(weight, sign, change, seed):
    """log p_new/p_old at one x_next, told from either side: the other side's noise is z + s w d."""
    new, old, noise = draws(seed, shape=(2, 32), change=change)
    forward = log_ratio(new, old, noise, weight=weight, sign=sign)
    backward = log_ratio(old, new, noise + sign * weight * (new - old), weight=weight, sign=sign)
    torch.testing.assert_close(forward, -backward, rtol=1e-9, atol=1e-12)


@given(st.floats(1e-3, 5), st.integers(0, 5))
def test_the_first_order_term_is_antisymmetric_and_the_second_is_not(weight, seed):
    new, old, noise = draws(seed, shape=(2, 32))
    up = log_ratio(new, old, noise, weight=weight, sign=1.0)
    down = log_ratio(new, old, noise, weight=weight, sign=-1.0)
    d = new - old
    torch.testing.assert_close(up - down, -2 * weight * (d * noise).mean(1), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(up + down, -(weight**2) * d.square().mean(1), rtol=1e-9, atol=1e-12)


def test_weights_and_signs_may_differ_by_sample():
    new, old, noise = draws()
    weights, signs = torch.tensor([0.3, 0.5, 1.0, 3.0, 0.0]), torch.tensor([1.0, -1.0, 1.0, 1.0, 1.0])
    together = log_ratio(new, old, noise, weight=weights, sign=signs)
    for row, (weight, sign) in enumerate(zip(weights.tolist(), signs.tolist(), strict=True)):
        alone = log_ratio(new[row : row + 1], old[row : row + 1], noise[row : row + 1], weight=weight, sign=sign)
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-15)


def test_the_mean_of_the_ratio_is_one_over_the_noise_that_drew_it():
    """With D = 1 the mean over D is the whole ratio, and E[rho] = 1 under the old policy."""
    noise = torch.randn(400_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = log_ratio(torch.full_like(noise, 0.2), torch.zeros_like(noise), noise, weight=1.5, sign=1.0)
    assert values.exp().mean().item() == pytest.approx(1, abs=4 * 0.31 / math.sqrt(400_000))


def test_rounding_of_the_log_ratio_stays_far_below_the_clip_range():
    """float32 all through: 1e-9; prediction and noise stored in fp16: 0.5 to 5e-6."""
    new, old, noise = draws(shape=(16, 16_384), change=0.02)
    exact = log_ratio(new, old, noise, weight=0.517, sign=1.0)
    single = log_ratio(new.float(), old.float(), noise.float(), weight=0.517, sign=1.0)
    assert (single - exact).abs().max() < 2e-9
    stored = log_ratio(new.float(), old.half(), noise.half(), weight=0.517, sign=1.0)
    assert 1e-7 < (stored - exact).square().mean().sqrt() < 5e-6


# -- the surrogates ----------------------------------------------------------------------------------------------------

wide = st.floats(-20 * XI, 20 * XI).map(lambda value: torch.tensor([value], dtype=torch.float64))
advantages = st.floats(-5, 5).map(lambda value: torch.tensor([value], dtype=torch.float64))


@given(wide, advantages)
def test_the_clipped_ratio_is_ppo_s_loss_plus_the_advantage(values, advantage):
    rho = values.exp()
    ppo = torch.maximum(-advantage * rho, -advantage * rho.clamp(1 - XI, 1 + XI))
    torch.testing.assert_close(clipped_ratio(values, advantage, clip_range=XI), ppo + advantage, rtol=0, atol=1e-14)


@given(wide, advantages)
def test_the_hinge_on_the_ratio_is_the_clipped_ratio_plus_a_constant(values, advantage):
    hinge = torch.relu(XI * advantage.abs() - advantage * torch.expm1(values))
    constant = XI * advantage.abs()
    torch.testing.assert_close(hinge, clipped_ratio(values, advantage, clip_range=XI) + constant, rtol=0, atol=1e-14)


@given(wide, advantages)
def test_the_log_hinge_is_the_hinge_to_second_order(values, advantage):
    hinge = clipped_ratio(values, advantage, clip_range=XI) + XI * advantage.abs()
    gap = (log_hinge(values, advantage, clip_range=XI) - hinge).abs()
    assert gap <= advantage.abs() * values.square() + 1e-14


def test_at_unchanged_weights_both_losses_push_along_the_advantage():
    for loss in LOSSES.values():
        values = torch.zeros(3, requires_grad=True)
        loss(values, torch.tensor([2.0, -1.0, 0.0]), clip_range=XI).sum().backward()
        assert values.grad is not None
        assert values.grad.tolist() == [-2.0, 1.0, 0.0]


@pytest.mark.parametrize(("change", "naive_error"), [(1e-4, 1e-4), (1e-7, 0.1)])
def test_in_float32_the_loss_keeps_the_digits_that_exp_minus_one_loses(change, naive_error):
    value, one = torch.tensor([change]), torch.ones(1)
    exact = math.expm1(value.item())
    naive = (value.exp() - 1).item()
    assert abs(naive / exact - 1) > naive_error
    loss = clipped_ratio(value, one, clip_range=1.0)
    assert -loss.item() == pytest.approx(exact, rel=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounded_values_fit_the_dtype_and_their_gradient_is_not_rounded(dtype):
    scales = torch.logspace(-9, 3, 4001)
    values = (scales * torch.randn(4001, generator=torch.Generator().manual_seed(0))).requires_grad_()
    found = rounded(values, dtype)
    assert torch.equal(found, values.detach().to(dtype).float()) and not torch.equal(found, values)
    (found * 1e-12).sum().backward()
    assert torch.equal(values.grad, torch.full_like(values, 1e-12))
    assert rounded(values, torch.float32) is values


def test_exp_minus_one_vanishes_in_half_types_where_expm1_does_not():
    for dtype, change in ((torch.float16, 4e-4), (torch.bfloat16, 3e-3)):
        value = torch.tensor([change], dtype=dtype)
        assert (value.exp() - 1).item() == 0
        loss = clipped_ratio(value, torch.ones(1, dtype=dtype), clip_range=1.0)
        assert -loss.item() == pytest.approx(change, rel=1e-2)


@objectives
def test_only_a_move_that_the_advantage_wants_is_cut_off(objective):
    values = torch.tensor([2 * XI, -2 * XI, 2 * XI, -2 * XI, 0.5 * XI, 2 * XI])
    advantage = torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0, 0.0])
    stopped = inactive(values, advantage, clip_range=XI, objective=objective)
    assert stopped.tolist() == [1, 0, 0, 1, 0, 0]
    tracked = values.clone().requires_grad_()
    LOSSES[objective](tracked, advantage, clip_range=XI).sum().backward()
    assert tracked.grad is not None
    assert (tracked.grad == 0).tolist() == [True, False, False, True, False, True]


@objectives
@pytest.mark.parametrize("change", [1e-4, 1e-2])
def test_the_closed_gradient_norm_is_autograd_s(objective, change):
    new, old, noise = draws(shape=(32, 3, 4, 4), change=change)
    advantage = torch.linspace(-3, 3, 32, dtype=torch.float64)
    weight = torch.linspace(0.3, 3.3, 32, dtype=torch.float64)
    settings: dict[str, Any] = {"weight": weight, "sign": 1.0}
    new.requires_grad_()
    values = log_ratio(new, old, noise, **settings)
    LOSSES[objective](values, advantage, clip_range=XI).sum().backward()
    assert new.grad is not None
    expected = new.grad.flatten(1).norm(dim=1)
    ours = gradient_norm(new, old, noise, values, advantage, **settings, clip_range=XI, objective=objective)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-14)
    assert 0 < (expected == 0).sum() < 32 and not ours.requires_grad


def test_an_unknown_objective_is_refused():
    with pytest.raises(ConfigError, match="got objective 'hinge'; expected 'clipped_ratio' or 'log_hinge'"):
        inactive(torch.zeros(1), torch.zeros(1), clip_range=XI, objective="hinge")  # type: ignore[arg-type]


# -- diagnostics -------------------------------------------------------------------------------------------------------


def counted(parts):
    made = StepDiagnostics(4)
    for step, values, advantage, norms in parts:
        made.add(step, values, advantage, norms, clip_range=XI, objective="log_hinge")
    return made


def some_parts(count=6):
    generator = torch.Generator().manual_seed(3)
    parts = []
    for part in range(count):
        values, advantage, norms = torch.randn(3, 8, generator=generator)
        parts.append((part % 3, values * 2 * XI, advantage, norms.abs()))
    return parts


def test_diagnostics_are_those_of_all_samples_of_a_step_at_once():
    parts = some_parts()
    summary = counted(parts).summary()
    for step in range(3):
        here = [part[1:] for part in parts if part[0] == step]
        values, advantage, norms = (torch.cat(tensors).double() for tensors in zip(*here, strict=True))
        rho = values.exp()
        assert summary["ratio_mean"][step] == pytest.approx(rho.mean().item(), abs=1e-12)
        assert summary["ratio_std"][step] == pytest.approx(rho.std(correction=0).item(), rel=1e-6)
        assert summary["log_ratio_std"][step] == pytest.approx(values.std(correction=0).item(), rel=1e-6)
        assert summary["clip_fraction"][step] == pytest.approx((values.abs() > XI).double().mean().item())
        expected = (advantage * values > XI * advantage.abs()).double().mean().item()
        assert summary["inactive_fraction"][step] == pytest.approx(expected)
        assert summary["max_log_ratio"][step] == pytest.approx(values.abs().max().item())
        total = sum(part[3].double().sum().item() for part in parts)
        assert summary["gradient_share"][step] == pytest.approx(norms.sum().item() / total)


def test_gradient_shares_add_up_to_one_and_untouched_steps_have_nothing():
    summary = counted(some_parts()).summary()
    assert sum(share for share in summary["gradient_share"] if share is not None) == pytest.approx(1, abs=1e-12)
    assert all(values[3] is None and len(values) == 4 for values in summary.values())


def test_the_overall_values_are_those_of_all_samples():
    parts = some_parts()
    overall = counted(parts).overall()
    values = torch.cat([part[1] for part in parts]).double()
    assert overall["ratio_mean"] == pytest.approx(values.exp().mean().item(), abs=1e-12)
    assert overall["clip_fraction"] == pytest.approx((values.abs() > XI).double().mean().item())
    assert overall["max_log_ratio"] == pytest.approx(values.abs().max().item())


def test_samples_of_one_micro_batch_may_stand_at_steps_of_their_own():
    values, advantage, norms = torch.tensor([XI, 2 * XI, 3 * XI]), torch.ones(3), torch.tensor([1.0, 2.0, 3.0])
    together, apart = StepDiagnostics(3), StepDiagnostics(3)
    settings: dict[str, Any] = {"clip_range": XI, "objective": "clipped_ratio"}
    together.add(torch.tensor([2, 0, 2]), values, advantage, norms, **settings)
    for row, step in enumerate((2, 0, 2)):
        apart.add(step, values[row : row + 1], advantage[row : row + 1], norms[row : row + 1], **settings)
    assert torch.equal(together.sums, apart.sums) and torch.equal(together.max_log_ratio, apart.max_log_ratio)


def test_each_micro_batch_is_counted_by_its_own_clip_range():
    made = StepDiagnostics(2)
    for step, clip_range in enumerate((XI, 3 * XI)):
        made.add(
            step, torch.full((2,), 2 * XI), torch.ones(2), torch.ones(2), clip_range=clip_range, objective="log_hinge"
        )
    summary = made.summary()
    assert summary["clip_fraction"] == summary["inactive_fraction"] == [1.0, 0.0]


def test_nothing_is_clipped_at_unchanged_weights():
    made = StepDiagnostics(2)
    made.add(0, torch.zeros(4), torch.ones(4), torch.ones(4), clip_range=XI, objective="log_hinge")
    overall = made.overall()
    assert overall.pop("ratio_mean") == 1.0
    assert overall == dict.fromkeys(
        ("ratio_std", "log_ratio_std", "clip_fraction", "inactive_fraction", "max_log_ratio"), 0.0
    )


def test_nothing_counted_gives_no_numbers():
    made = StepDiagnostics(2)
    assert set(made.overall().values()) == {None}
    assert all(values == [None, None] for values in made.summary().values())


def test_gradients_that_are_all_cut_off_have_no_shares():
    made = StepDiagnostics(1)
    made.add(0, torch.full((2,), 3 * XI), torch.ones(2), torch.zeros(2), clip_range=XI, objective="log_hinge")
    assert made.summary()["gradient_share"] == [None] and made.summary()["inactive_fraction"] == [1.0]


def test_a_log_ratio_that_is_not_finite_is_refused_and_not_counted():
    made = StepDiagnostics(3)
    made.add(0, torch.zeros(2), torch.ones(2), torch.ones(2), clip_range=XI, objective="log_hinge")
    made.add(1, torch.tensor([0.0, math.nan]), torch.ones(2), torch.ones(2), clip_range=XI, objective="log_hinge")
    with pytest.raises(TrainingError, match=r"at step \[1\] a log-ratio or its gradient is not finite"):
        made.count()
    assert made.overall()["ratio_mean"] is None
    made.add(
        1, torch.full((10_000,), math.nan), torch.ones(10_000), torch.ones(10_000), clip_range=XI, objective="log_hinge"
    )
    with pytest.raises(TrainingError, match=r"of 10000 \(image, step\) pairs") as raised:
        made.count()
    assert len(str(raised.value)) < 400


def test_the_importance_is_the_truncated_ratio_of_a_steps_two_densities():
    drawing = torch.Generator().manual_seed(0)
    x, old, new, z = (torch.randn(5, 3, 4, dtype=torch.float64, generator=drawing) for _ in range(4))
    new = old + 0.1 * new
    step = AffineStep(scale=1.1, gain=-0.4, std=0.3)
    drawn = step.scale * x + step.gain * old + step.std * z
    ratio = torch.ones(5, dtype=torch.float64)
    for prediction, sign in ((new, 1), (old, -1)):
        density = torch.distributions.Normal(step.scale * x + step.gain * prediction, step.std)
        ratio = ratio * (sign * density.log_prob(drawn).flatten(1).sum(1)).exp()
    lag = log_ratio(new, old, z, weight=step.weight, sign=step.sign)
    most = float(ratio.median())
    found = importance(lag, dimensions=12, most=most)
    torch.testing.assert_close(found, ratio.clamp(max=most), rtol=1e-12, atol=0)
    assert 0 < int((ratio > most).sum()) < 5


def test_the_spread_of_importance_weights_adds_up_over_passes():
    weights = torch.tensor([0.5, 1.0, 2.0, 2.0, 1.0], dtype=torch.float64)
    counted = torch.tensor([True, True, True, True, False])
    parts = [spread(weights[rows], counted[rows], most=2.0) for rows in (slice(0, 2), slice(2, 5))]
    assert spread_in_numbers((parts[0] + parts[1]).tolist()) == pytest.approx(
        {"mean": 1.375, "std": weights[:4].std(correction=0).item(), "truncated": 0.5, "effective": 5.5**2 / (4 * 9.25)}
    )
    assert spread_in_numbers([0.0] * 4) is None
