"""Diagnostics: what a clip range cuts off, gradient norms in closed form, and sums per timestep."""

import math
from typing import Any

import pytest
import torch

from pcpo_ray.algorithm.diagnostics import TimestepDiagnostics, gradient_norm, inactive
from pcpo_ray.algorithm.objective import clipped_ratio, divergence_mask, kl_divergence, log_ratio
from pcpo_ray.errors import ConfigError, TrainingError
from tests.support.predictions import LOSSES, XI, draws

objectives = pytest.mark.parametrize("objective", list(LOSSES))


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
    stopped = inactive(values.detach(), advantage, clip_range=XI, objective=objective)
    ours = gradient_norm(new, old, noise, values, advantage, **settings, stopped=stopped, objective=objective)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-14)
    assert 0 < (expected == 0).sum() < 32 and not ours.requires_grad


def test_an_unknown_objective_is_refused():
    with pytest.raises(
        ConfigError, match="got objective 'hinge'; expected 'clipped_ratio' or 'log_hinge' or 'divergence_mask'"
    ):
        inactive(torch.zeros(1), torch.zeros(1), clip_range=XI, objective="hinge")  # type: ignore[arg-type]


def note(made, step, values, advantage, norms, *, clip_range=XI, objective="log_hinge", drift=None):
    stopped = inactive(values, advantage, clip_range=clip_range, objective=objective)
    drift = torch.zeros_like(values) if drift is None else drift
    made.add(step, values, norms, drift=drift, stopped=stopped, distance=values.abs(), limit=clip_range, weight=1.0)


def counted(parts):
    made = TimestepDiagnostics(4)
    for step, values, advantage, norms in parts:
        note(made, step, values, advantage, norms)
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


def test_sums_of_two_ranks_add_up_to_what_one_process_counts():
    parts = some_parts()
    first, second, together = counted(parts[:2]), counted(parts[2:]), counted(parts)
    torch.testing.assert_close(first.sums + second.sums, together.sums, rtol=1e-12, atol=0)
    assert torch.equal(torch.maximum(first.max_log_ratio, second.max_log_ratio), together.max_log_ratio)


def test_samples_of_one_micro_batch_may_stand_at_steps_of_their_own():
    values, advantage, norms = torch.tensor([XI, 2 * XI, 3 * XI]), torch.ones(3), torch.tensor([1.0, 2.0, 3.0])
    together, apart = TimestepDiagnostics(3), TimestepDiagnostics(3)
    settings: dict[str, Any] = {"clip_range": XI, "objective": "clipped_ratio"}
    note(together, torch.tensor([2, 0, 2]), values, advantage, norms, **settings)
    for row, step in enumerate((2, 0, 2)):
        note(apart, step, values[row : row + 1], advantage[row : row + 1], norms[row : row + 1], **settings)
    assert torch.equal(together.sums, apart.sums)
    assert torch.equal(together.max_log_ratio, apart.max_log_ratio)


def test_each_micro_batch_is_counted_by_its_own_clip_range():
    made = TimestepDiagnostics(2)
    for step, clip_range in enumerate((XI, 3 * XI)):
        note(
            made,
            step,
            torch.full((2,), 2 * XI),
            torch.ones(2),
            torch.ones(2),
            clip_range=clip_range,
            objective="log_hinge",
        )
    summary = made.summary()
    assert summary["clip_fraction"] == summary["inactive_fraction"] == [1.0, 0.0]


def test_without_its_quadratic_term_the_mean_ratio_stays_at_one():
    """Over the noise the linear term has mean 0; the quadratic one pushes the mean of rho below 1."""
    new, old, noise = draws(shape=(20_000, 400), change=0.2)
    values = log_ratio(new, old, noise, weight=1.5, sign=1.0)
    drift = 0.5 * 1.5**2 * (new - old).square().mean(1)
    made = TimestepDiagnostics(1)
    note(made, 0, values, torch.ones_like(values), torch.ones_like(values), drift=drift)
    table = made.overall()
    linear = -1.5 * ((new - old) * noise).mean(1)
    assert table["centred_ratio_mean"] == pytest.approx(linear.exp().mean().item(), rel=1e-12)
    assert table["centred_ratio_mean"] == pytest.approx(1, abs=3e-4)
    assert table["ratio_mean"] == pytest.approx(1 - drift.mean().item(), abs=2e-3) and table["ratio_mean"] < 0.96


def test_without_the_quadratic_term_the_closed_gradient_norm_is_autograd_s():
    new, old, noise = draws(shape=(32, 3, 4, 4), change=1.0)
    advantage = torch.linspace(-3, 3, 32, dtype=torch.float64)
    new.requires_grad_()
    values = log_ratio(new, old, noise, weight=2.0, sign=-1.0, quadratic=False)
    clipped_ratio(values, advantage, clip_range=0.1).sum().backward()
    stopped = inactive(values.detach(), advantage, clip_range=0.1, objective="clipped_ratio")
    settings: dict[str, Any] = {"weight": 2.0, "sign": -1.0, "stopped": stopped, "quadratic": False}
    ours = gradient_norm(new, old, noise, values, advantage, **settings, objective="clipped_ratio")
    assert new.grad is not None and 0 < stopped.sum() < 32
    torch.testing.assert_close(ours, new.grad.flatten(1).norm(dim=1), rtol=1e-10, atol=1e-14)


def test_a_mask_by_divergence_counts_what_it_cuts_off():
    new, old, noise = draws(shape=(64, 3, 4, 4), change=0.3)
    new = old + torch.linspace(0.1, 2, 64, dtype=torch.float64)[:, None, None, None] * (new - old)
    advantage = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(32)
    new.requires_grad_()
    values = log_ratio(new, old, noise, weight=2.0, sign=1.0)
    divergence = kl_divergence(new.detach(), old, weight=2.0)
    threshold = float(divergence.median())
    divergence_mask(values, advantage, divergence, threshold=threshold).sum().backward()
    settings: dict[str, Any] = {"objective": "divergence_mask", "divergence": divergence}
    stopped = inactive(values.detach(), advantage, clip_range=threshold, **settings)
    ours = gradient_norm(
        new, old, noise, values, advantage, weight=2.0, sign=1.0, stopped=stopped, objective="divergence_mask"
    )
    assert new.grad is not None and 10 < stopped.sum() < 32
    torch.testing.assert_close(ours, new.grad.flatten(1).norm(dim=1), rtol=1e-10, atol=1e-14)


def test_nothing_is_clipped_at_unchanged_weights():
    made = TimestepDiagnostics(2)
    note(made, 0, torch.zeros(4), torch.ones(4), torch.ones(4), clip_range=XI, objective="log_hinge")
    overall = made.overall()
    assert overall.pop("ratio_mean") == overall.pop("centred_ratio_mean") == 1.0
    assert overall == dict.fromkeys(
        ("ratio_std", "log_ratio_std", "clip_fraction", "inactive_fraction", "max_log_ratio"), 0.0
    )


def test_nothing_counted_gives_no_numbers():
    made = TimestepDiagnostics(2)
    assert set(made.overall().values()) == {None}
    assert all(values == [None, None] for values in made.summary().values())


def test_gradients_that_are_all_cut_off_have_no_shares():
    made = TimestepDiagnostics(1)
    note(made, 0, torch.full((2,), 3 * XI), torch.ones(2), torch.zeros(2), clip_range=XI, objective="log_hinge")
    assert made.summary()["gradient_share"] == [None] and made.summary()["inactive_fraction"] == [1.0]


def test_a_log_ratio_that_is_not_finite_is_refused_and_not_counted():
    made = TimestepDiagnostics(3)
    note(made, 0, torch.zeros(2), torch.ones(2), torch.ones(2), clip_range=XI, objective="log_hinge")
    note(made, 1, torch.tensor([0.0, math.nan]), torch.ones(2), torch.ones(2), clip_range=XI, objective="log_hinge")
    with pytest.raises(TrainingError, match=r"at step \[1\] a log-ratio or its gradient is not finite"):
        made.count()
    assert made.overall()["ratio_mean"] is None
    note(
        made,
        1,
        torch.full((10_000,), math.nan),
        torch.ones(10_000),
        torch.ones(10_000),
        clip_range=XI,
        objective="log_hinge",
    )
    with pytest.raises(TrainingError, match=r"of 10000 \(image, step\) pairs") as raised:
        made.count()
    assert len(str(raised.value)) < 400
