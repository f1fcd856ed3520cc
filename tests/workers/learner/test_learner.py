"""The learner: the effect of an update, and the updates that are refused."""

import math

import pytest
import torch

from pcpo_ray.algorithm import objective
from pcpo_ray.data.updates import DriverState
from pcpo_ray.errors import TrainingError
from pcpo_ray.workers.learner.learner import BAD_GRADIENTS, Learner
from tests.support import small
from tests.support.trajectories import ADVANTAGES, CPU, batch, pair, task


@pytest.mark.parametrize("model", ["small_sd", "small_sdxl", "small_sd3", "small_flux", "small_flux_dev"])
@pytest.mark.parametrize(("size", "scale"), [("null", 1.0), (2, 3.0)])
def test_at_unchanged_weights_every_log_ratio_is_exactly_zero(model, size, scale, request):
    changes = {"sampling__batch": size, "sampling__guidance_scale": scale}
    sampler, learner = pair(request.getfixturevalue(model), **changes)
    update = learner.update(1, batch(sampler, learner))
    assert update.diagnostics["overall"]["max_log_ratio"] == 0.0
    assert update.diagnostics["overall"]["ratio_mean"] == 1.0
    assert update.gradient_norm > 0


@pytest.mark.parametrize("credit", ["native", "reweight", "interpolate"])
@pytest.mark.parametrize("kind", ["clipped_ratio", "log_hinge"])
def test_an_update_raises_the_likelihood_of_what_had_the_higher_advantage(small_sd, credit, kind):
    changes = {"credit__kind": credit, "objective__kind": kind, "optimizer__learning_rate": 1e-3}
    sampler, learner = pair(small_sd, **changes)
    groups = batch(sampler, learner, count=1)
    learner.update(1, groups)
    _, trajectory, advantages = groups[0]
    plan = learner.policy.credit
    rows = {name: row.expand(4, *row.shape[1:]) for name, row in trajectory.conditioning.items()}
    gained = torch.zeros(4)
    with torch.no_grad():
        for k, index in enumerate(trajectory.steps.tolist()):
            gained += objective.log_ratio(
                learner.policy.predict(trajectory.latents[:, k], index, rows),
                trajectory.predictions[:, k],
                trajectory.noises[:, k],
                weight=plan.weights[index],
                sign=plan.steps[index].sign,
            )
    assert float((gained * torch.tensor(advantages)).sum()) > 0


def test_log_ratios_move_once_the_weights_have(small_sd):
    sampler, learner = pair(small_sd, optimizer__minibatches=2)
    update = learner.update(1, batch(sampler, learner))
    assert update.diagnostics["overall"]["max_log_ratio"] > 1e-6


def test_a_sampler_of_other_weights_is_found_out_at_the_first_update(small_sd):
    sampler, learner = pair(small_sd)
    with torch.no_grad():
        for parameter in sampler.policy.denoiser.trainable().values():
            parameter.add_(0.05)
    wrong = [(0, sampler.sample(task())[0], ADVANTAGES)]
    with pytest.raises(TrainingError, match="do not compute the same prediction"):
        learner.update(1, wrong)


@pytest.mark.parametrize("size", ["null", 3])
def test_the_gradient_is_of_the_mean_over_all_images_and_trained_steps(small_sd, size):
    sampler, learner = pair(small_sd, optimizer__max_gradient_norm=1e9, sampling__batch=size)
    groups = batch(sampler, learner)
    reference = Learner(small.run(small_sd), CPU)
    plan, clip_range = reference.policy.credit, reference.run.objective.clip_range
    losses = []
    for _, trajectory, advantages in groups:
        rows = {name: row.expand(4, *row.shape[1:]) for name, row in trajectory.conditioning.items()}
        for k, index in enumerate(trajectory.steps.tolist()):
            log_ratio = objective.log_ratio(
                reference.policy.predict(trajectory.latents[:, k], index, rows),
                trajectory.predictions[:, k],
                trajectory.noises[:, k],
                weight=plan.weights[index],
                sign=plan.steps[index].sign,
            )
            losses.append(objective.log_hinge(log_ratio, torch.tensor(advantages), clip_range=clip_range))
    torch.cat(losses).mean().backward()
    expected = torch.stack([p.grad.norm() for p in reference.parameters.values() if p.grad is not None]).norm()
    update = learner.update(1, groups)
    assert update.gradient_norm == pytest.approx(float(expected), rel=1e-4)
    assert update.loss == pytest.approx(float(torch.cat(losses).mean()), rel=1e-5, abs=1e-7)


def test_equal_scores_leave_the_weights_as_they_are(small_sd):
    sampler, learner = pair(small_sd, optimizer__weight_decay=0.0)
    before = learner.weights().manifest.checksum
    trajectory = batch(sampler, learner, count=1)[0][1]
    update = learner.update(1, [(0, trajectory, [0.0] * 4)])
    assert update.gradient_norm == 0.0
    assert learner.weights().manifest.checksum == before


def test_an_update_out_of_turn_is_refused(small_sd):
    sampler, learner = pair(small_sd)
    with pytest.raises(TrainingError, match="expected 1"):
        learner.update(2, batch(sampler, learner))


def test_full_fine_tuning_learns_and_its_checkpoint_is_a_pipeline(small_sd, tmp_path):
    from diffusers import StableDiffusionPipeline

    sampler, learner = pair(small_sd, model__train="{kind: full}")
    update = learner.update(1, batch(sampler, learner))
    assert update.diagnostics["overall"]["max_log_ratio"] == 0.0
    learner.save(tmp_path / "step-000001", DriverState(step=1))
    loaded = dict(StableDiffusionPipeline.from_pretrained(tmp_path / "step-000001").unet.named_parameters())
    assert all(torch.equal(parameter, loaded[name]) for name, parameter in learner.parameters.items())


def test_bf16_autocast_keeps_the_first_ratio_at_one(small_sd):
    sampler, learner = pair(small_sd, optimizer__mixed_precision="bf16")
    update = learner.update(1, batch(sampler, learner))
    assert update.diagnostics["overall"]["max_log_ratio"] == 0.0


def test_epochs_go_through_the_batch_again(small_sd):
    sampler, learner = pair(small_sd, optimizer__minibatches=2, optimizer__epochs=3)
    learner.update(1, batch(sampler, learner))
    assert {int(state["step"]) for state in learner.optimizer.state.values()} == {6}


def test_every_older_group_is_compared_before_any_weight_moves(small_sd, monkeypatch):
    sampler, learner = pair(small_sd, objective__correction=2.0, optimizer__minibatches=2)
    groups, found, lags = batch(sampler, learner), {}, learner._lags
    learner.update(1, groups)
    monkeypatch.setattr(learner, "_lags", lambda *arguments: found.update(lags(*arguments)) or found)
    learner.update(2, groups)
    assert found.keys() == {0, 1} and all((one != 0).all() for one in found.values())


# -- nothing trains on nothing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["small_sd", "small_flux"])
def test_full_training_moves_half_precision_weights_as_it_moves_float32(model, request):
    moved = {}
    for dtype in ("float32", "bfloat16", "float16"):
        changes = {"model__train": "{kind: full}", "model__dtype": dtype, "optimizer__learning_rate": 1e-6}
        sampler, learner = pair(request.getfixturevalue(model), **changes)
        begun = {name: value.detach().clone() for name, value in learner.masters.values.items()}
        for step in (1, 2, 3):
            update = learner.update(step, batch(sampler, learner))
            assert update.diagnostics["overall"]["max_log_ratio"] == 0.0
            assert update.moved_fraction > 0.95 and update.skipped == 0
        moved[dtype] = {name: value.detach() - begun[name] for name, value in learner.masters.values.items()}
        assert all(torch.equal(p, learner.masters.values[name].to(p.dtype)) for name, p in learner.parameters.items())
        assert {p.dtype for p in learner.parameters.values()} == {getattr(torch, dtype)}
    flat = {dtype: torch.cat([change.flatten() for change in one.values()]) for dtype, one in moved.items()}
    for half in ("bfloat16", "float16"):
        assert float(flat[half].norm() / flat["float32"].norm()) == pytest.approx(1, rel=0.05)


def test_an_update_says_how_far_the_weights_moved(small_sd):
    sampler, learner = pair(small_sd, optimizer__weight_decay=0.0)
    before = {name: value.detach().clone() for name, value in learner.masters.values.items()}
    update = learner.update(1, batch(sampler, learner))
    pairs = [(before[name], value.detach()) for name, value in learner.masters.values.items()]
    change = math.sqrt(sum(float((now - old).double().square().sum()) for old, now in pairs))
    size = math.sqrt(sum(float(now.double().square().sum()) for _, now in pairs))
    count = sum(now.numel() for _, now in pairs)
    assert update.update_ratio == pytest.approx(change / size, rel=1e-6)
    assert update.moved_fraction == pytest.approx(sum(int((now != old).sum()) for old, now in pairs) / count)
    still = learner.update(2, [(1, trajectory, [0.0] * 4) for _, trajectory, _ in batch(sampler, learner)])
    assert still.moved_fraction > 0  # AdamW's first moment goes on moving them


def test_equal_scores_from_the_start_move_nothing_and_it_is_said(small_sd):
    sampler, learner = pair(small_sd, optimizer__weight_decay=0.0)
    update = learner.update(1, [(0, trajectory, [0.0] * 4) for _, trajectory, _ in batch(sampler, learner)])
    assert (update.moved_fraction, update.update_ratio) == (0.0, 0.0)


# -- numbers that are not finite ---------------------------------------------------------------------------------------


def spoil(learner, times):
    """Make the gradients of the next optimizer steps NaN, so many times."""
    left, clip = [times], learner.accelerator.clip_grad_norm_

    def clipped(parameters, most):
        if left[0]:
            left[0] -= 1
            next(p for p in parameters if p.grad is not None).grad.fill_(float("nan"))
        return clip(parameters, most)

    learner.accelerator.clip_grad_norm_ = clipped


def test_one_bad_gradient_is_skipped_and_counted(small_sd):
    sampler, learner = pair(small_sd, optimizer__minibatches=2, optimizer__average=0.9)
    spoil(learner, 1)
    update = learner.update(1, batch(sampler, learner))
    assert update.skipped == 1 and math.isfinite(update.gradient_norm) and update.moved_fraction > 0
    assert learner.ema.updates == 1
    assert all(value.isfinite().all() for value in learner.masters.values.values())
    spoil(learner, 2)
    update = learner.update(2, batch(sampler, learner))
    assert (update.skipped, update.moved_fraction) == (2, 0.0) and math.isnan(update.gradient_norm)


def test_several_bad_gradients_in_a_row_end_the_run_also_across_updates(small_sd):
    sampler, learner = pair(small_sd)
    spoil(learner, BAD_GRADIENTS + 1)
    for step in range(1, BAD_GRADIENTS + 1):
        assert learner.update(step, batch(sampler, learner)).skipped == 1
    with pytest.raises(TrainingError, match=f"{BAD_GRADIENTS + 1} gradients in a row are not finite"):
        learner.update(BAD_GRADIENTS + 1, batch(sampler, learner))


def test_weights_that_are_not_finite_after_an_update_end_the_run(small_sd):
    sampler, learner = pair(small_sd)
    groups, step = batch(sampler, learner), learner.optimizer.step

    def overflowing():
        step()
        next(iter(learner.masters.values.values())).data.view(-1)[3] = float("inf")

    learner.optimizer.step = overflowing
    with pytest.raises(TrainingError, match="weights after update 1 are not finite"):
        learner.update(1, groups)


# -- settings off the defaults -----------------------------------------------------------------------------------------


def test_a_minibatch_of_mixed_ages_may_start_at_a_nonzero_log_ratio(small_sd):
    sampler, learner = pair(small_sd)
    old = batch(sampler, learner, count=1)
    learner.update(1, old)
    fresh = batch(sampler, learner, count=1)
    mixed = [fresh[0], old[0]]
    assert learner.update(2, mixed).first_log_ratio > 1e-6
