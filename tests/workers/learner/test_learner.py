"""The learner: what one update does, and what it refuses."""

import json
import math

import pytest
import torch

from pcpo_ray.algorithm import objective
from pcpo_ray.data.updates import DriverState
from pcpo_ray.errors import CheckpointError, RunError, TrainingError, WeightsError
from pcpo_ray.runs import checkpoints
from pcpo_ray.workers.learner import distributed, mini_batches
from pcpo_ray.workers.learner.learner import BAD_GRADIENTS, Learner
from pcpo_ray.workers.packing import pack_trajectory
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
def test_the_gradient_is_that_of_the_mean_over_all_images_and_trained_steps(small_sd, size):
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
    assert update.loss == pytest.approx(float(torch.cat(losses).mean()), rel=1e-5)


def test_equal_scores_leave_the_weights_as_they_are(small_sd):
    sampler, learner = pair(small_sd, optimizer__weight_decay=0.0)
    before = learner.weights().manifest.checksum
    trajectory = batch(sampler, learner, count=1)[0][1]
    update = learner.update(1, [(0, trajectory, [0.0] * 4)])
    assert update.gradient_norm == 0.0
    assert learner.weights().manifest.checksum == before


@pytest.mark.parametrize(
    "changes", [{}, {"optimizer__minibatches": 2, "optimizer__epochs": 2, "objective__correction": 2}]
)
def test_what_travels_packed_is_learned_to_the_same_bits(small_sd, changes):
    sampler, learner = pair(small_sd, **changes)
    _, other = pair(small_sd, **changes)
    groups = batch(sampler, learner)
    travelled = [(v, pack_trajectory(sampler.policy, task(position=n), t), a) for n, (v, t, a) in enumerate(groups)]
    for step in (1, 2):
        learner.update(step, groups)
        other.update(step, travelled)
    assert learner.weights().manifest.checksum == other.weights().manifest.checksum


def test_a_checkpoint_restores_parameters_and_optimizer_to_the_bit(small_sd, tmp_path):
    sampler, learner = pair(small_sd)
    learner.update(1, batch(sampler, learner))
    learner.save(tmp_path / "step-000001", DriverState(step=1, histories={"reward": {"a": [1.0, 2.0]}}))
    _, other = pair(small_sd)
    assert other.restore(tmp_path / "step-000001") == DriverState(step=1, histories={"reward": {"a": [1.0, 2.0]}})
    groups = batch(sampler, learner)
    learner.update(2, groups)
    other.update(2, groups)
    assert learner.weights().manifest.checksum == other.weights().manifest.checksum


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_running_mean_goes_on_from_any_checkpoint_that_of_step_0_included(small_sd, tmp_path, steps):
    sampler, learner = pair(small_sd, optimizer__average=0.9, optimizer__minibatches=2)
    for step in range(1, steps + 1):
        learner.update(step, batch(sampler, learner))
    learner.save(tmp_path / "saved", DriverState(step=steps))
    _, other = pair(small_sd, optimizer__average=0.9, optimizer__minibatches=2)
    other.restore(tmp_path / "saved")
    assert other.average.updates == 2 * steps
    groups = batch(sampler, learner)
    for one in (learner, other):
        one.update(steps + 1, groups)
    for averaged in (False, True):
        sent = [one.weights(averaged=averaged).manifest.checksum for one in (learner, other)]
        assert sent[0] == sent[1]


def test_a_checkpoint_that_may_not_be_written_any_more_has_no_name(small_sd, tmp_path):
    def refused():
        raise RunError("another process has taken over")

    _, learner = pair(small_sd)
    with pytest.raises(RunError, match="taken over"):
        learner.save(tmp_path / "step-000000", DriverState(step=0), allowed=refused)
    assert not list(tmp_path.iterdir())


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


def test_the_divergence_from_the_reference_has_the_gradient_of_its_formula(small_sd):
    """With all advantages 0 the loss is beta times the mean over images and steps of w^2 mean(d^2) / 2."""
    sampler, learner = pair(small_sd, objective__kl=0.5, credit__kind="native", optimizer__max_gradient_norm=1e9)
    for parameter in learner.parameters.values():
        parameter.data.add_(0.05)
    (version, trajectory, _), *_ = batch(sampler, learner, count=1)
    plan = learner.policy.credit
    rows = {name: row.expand(4, *row.shape[1:]) for name, row in trajectory.conditioning.items()}
    expected = torch.zeros(())
    for k, index in enumerate(trajectory.steps.tolist()):
        with torch.no_grad(), learner.policy.denoiser.without_adapter():
            reference = learner.policy.predict(trajectory.latents[:, k], index, rows)
        change = learner.policy.predict(trajectory.latents[:, k], index, rows) - reference
        expected = expected + (0.5 * plan.steps[index].weight ** 2 * change.square().flatten(1).mean(1)).mean()
    expected = expected / len(trajectory.steps)
    wanted = torch.autograd.grad(0.5 * expected, list(learner.parameters.values()))
    norm = torch.stack([gradient.norm() for gradient in wanted]).norm()
    update = learner.update(1, [(version, trajectory, [0.0] * 4)])
    assert update.kl == pytest.approx(float(expected), rel=1e-5)
    assert update.loss == pytest.approx(0.5 * update.kl, rel=1e-5)
    assert update.gradient_norm == pytest.approx(float(norm), rel=1e-4) and update.gradient_norm > 0


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "float16"])
def test_an_adapter_that_adds_nothing_yet_has_no_divergence_in_any_storage(small_flux, storage):
    sampler, learner = pair(small_flux, objective__kl=0.5, sampling__storage=storage)
    assert learner.update(1, batch(sampler, learner)).kl == 0.0


def test_the_divergence_pulls_back_to_the_reference(small_sd):
    sampler, learner = pair(small_sd, objective__kl=1.0, optimizer__learning_rate=1e-2)
    for parameter in learner.parameters.values():
        parameter.data.add_(0.05)
    found = []
    for step in range(1, 6):
        groups = [(version, trajectory, [0.0] * 4) for version, trajectory, _ in batch(sampler, learner)]
        found.append(learner.update(step, groups).kl)
    assert found[-1] < 0.7 * found[0]


def test_without_a_coefficient_no_divergence_is_computed(small_sd, monkeypatch):
    sampler, learner = pair(small_sd)
    monkeypatch.setattr(learner.policy.denoiser, "without_adapter", lambda: pytest.fail("asked for the reference"))
    update = learner.update(1, batch(sampler, learner))
    assert update.kl is None and update.importance is None


def test_epochs_go_through_the_batch_again(small_sd):
    sampler, learner = pair(small_sd, optimizer__minibatches=2, optimizer__epochs=3)
    learner.update(1, batch(sampler, learner))
    assert {int(state["step"]) for state in learner.optimizer.state.values()} == {6}


def test_a_clip_range_in_proportion_to_the_weights_keeps_its_mean(small_sd):
    _, learner = pair(small_sd, objective__clip_scale="weight", credit__kind="native", sampling__steps=8)
    plan = learner.policy.credit
    assert float(learner.clip_ranges.mean()) == pytest.approx(0.01)
    ratios = learner.clip_ranges / torch.tensor(plan.weights)
    assert ratios.tolist() == pytest.approx([float(ratios[0])] * 8, rel=1e-6)
    _, constant = pair(small_sd, sampling__steps=8)
    assert constant.clip_ranges.tolist() == pytest.approx([0.01] * 8)


def test_a_step_s_loss_is_scaled_by_its_noise_outside_the_clip(small_flux):
    sampler, learner = pair(small_flux, objective__step_loss="noise", sampling__process="{kind: ratio_noise}")
    plan = learner.policy.credit
    stds = [plan.steps[index].std for index in plan.trained]
    factors = learner.factors[list(plan.trained)].tolist()
    assert sum(factors) / len(factors) == pytest.approx(1.0)
    assert factors == pytest.approx([std * len(stds) / sum(stds) for std in stds])
    _, plain = pair(small_flux, sampling__process="{kind: ratio_noise}")
    groups = batch(sampler, learner)
    shares = []
    for one in (plain, learner):
        table = one.update(1, groups).diagnostics["per_timestep"]
        assert table["inactive_fraction"] == [0.0] * len(plan.trained)
        shares.append(table["gradient_share"])
    scaled = [factor * share for factor, share in zip(factors, shares[0], strict=True)]
    assert shares[1] == pytest.approx([value / sum(scaled) for value in scaled], rel=1e-4)


@pytest.mark.parametrize("kind", ["clipped_ratio", "log_hinge"])
@pytest.mark.parametrize("updates", [1, 2])
def test_a_truncated_correction_weighs_what_older_weights_sampled(small_sd, kind, updates):
    changes = {"objective__kind": kind, "objective__clip_range": 10, "optimizer__max_gradient_norm": 1e9}
    sampler, learner = pair(small_sd, **changes, objective__correction=1.2, optimizer__minibatches=updates)
    groups = batch(sampler, learner)
    learner.update(1, groups)
    plan, moved = learner.policy.credit, {name: p.detach().clone() for name, p in learner.parameters.items()}
    expected, noted = [], []
    for place in mini_batches.split_groups(learner.run.optimizer, 2, seed=0, step=2)[0]:
        trajectory = groups[place][1]
        rows = {name: row.expand(4, *row.shape[1:]) for name, row in trajectory.conditioning.items()}
        for k, index in enumerate(trajectory.steps.tolist()):
            ratio = objective.log_ratio(
                learner.policy.predict(trajectory.latents[:, k], index, rows),
                trajectory.predictions[:, k],
                trajectory.noises[:, k],
                weight=plan.weights[index],
                sign=plan.steps[index].sign,
            )
            with torch.no_grad():  # the ratio of the two densities of the sampler's own step, over all D dimensions
                change = learner.policy.predict(trajectory.latents[:, k], index, rows) - trajectory.predictions[:, k]
                step, z = plan.steps[index], trajectory.noises[:, k]
                density = step.std * z - step.gain * change  # x_next less the present mean
                ratio_of_densities = (0.5 * (z.square() - (density / step.std).square())).flatten(1).sum(1).exp()
            weight = ratio_of_densities.clamp(max=1.2)
            # d rho / d log rho is 1 where the log-ratio to the weights that learn is 0
            expected.append(-torch.tensor(ADVANTAGES) * weight * (ratio - ratio.detach()))
            noted.append(weight)
    torch.cat(expected).mean().backward()
    norm = torch.stack([p.grad.norm() for p in learner.parameters.values() if p.grad is not None]).norm()
    learner.optimizer.zero_grad()
    weights = torch.cat(noted)
    assert float(weights.max()) == pytest.approx(1.2) and float(weights.min()) < 0.9
    assert all(torch.equal(moved[name], p) for name, p in learner.parameters.items())
    update = learner.update(2, groups)
    if updates == 1:
        assert update.gradient_norm == pytest.approx(float(norm), rel=1e-4)
        assert update.diagnostics["overall"]["max_log_ratio"] == 0  # against the weights that learn
        assert update.importance == pytest.approx(
            {
                "mean": float(weights.mean()),
                "std": float(weights.std(correction=0)),
                "truncated": float((weights >= 1.2).float().mean()),
                "effective": float(weights.sum() ** 2 / (len(weights) * weights.square().sum())),
            },
            rel=1e-4,
        )
    else:
        assert update.diagnostics["overall"]["max_log_ratio"] > 0


def test_every_older_group_is_compared_before_anything_moves_whichever_minibatch_learns_it(small_sd, monkeypatch):
    sampler, learner = pair(small_sd, objective__correction=2.0, optimizer__minibatches=2)
    groups, found, lags = batch(sampler, learner), {}, learner._lags
    learner.update(1, groups)
    monkeypatch.setattr(learner, "_lags", lambda *arguments: found.update(lags(*arguments)) or found)
    learner.update(2, groups)
    assert found.keys() == {0, 1} and all((one != 0).all() for one in found.values())


def test_without_a_correction_the_log_ratio_is_against_the_policy_that_sampled(small_sd):
    sampler, learner = pair(small_sd)
    groups = batch(sampler, learner)
    learner.update(1, groups)
    assert learner.update(2, groups).diagnostics["overall"]["max_log_ratio"] > 1e-6


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("model", ["small_sd", "small_flux"])
def test_the_decomposed_log_ratio_is_zero_at_equal_weights_in_every_storage(model, storage, request):
    changes = {"sampling__storage": storage, "credit__kind": "native", "optimizer__minibatches": 1}
    sampler, learner = pair(request.getfixturevalue(model), **changes)
    update = learner.update(1, batch(sampler, learner))
    assert update.diagnostics["overall"]["max_log_ratio"] == 0.0
    assert update.gradient_norm > 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_network_is_given_latents_of_its_own_dtype_in_one_piece_as_the_sampler_gave_them(small_flux, dtype):
    sampler, learner = pair(small_flux, model__dtype=dtype, sampling__storage=dtype)
    assert learner.update(1, batch(sampler, learner)).diagnostics["overall"]["max_log_ratio"] == 0.0


@pytest.mark.parametrize("storage, least, most", [("float32", 0, 1e-5), ("bfloat16", 1e-4, 1), ("float16", 1e-5, 1)])
def test_a_replay_is_off_by_what_rounding_did_to_the_stored_latents(small_sd, storage, least, most):
    changes = {"sampling__storage": storage, "credit__kind": "native", "objective__log_ratio": "replay"}
    sampler, learner = pair(small_sd, **changes)
    update = learner.update(1, batch(sampler, learner))
    assert least <= update.diagnostics["overall"]["max_log_ratio"] <= most


def test_in_float32_a_replay_learns_what_the_decomposed_log_ratio_does(small_sd):
    found = []
    for kind in ("decomposed", "replay"):
        sampler, learner = pair(small_sd, credit__kind="native", objective__log_ratio=kind)
        learner.update(1, batch(sampler, learner))
        found.append(learner.parameters)
    for name, value in found[0].items():
        assert torch.allclose(value, found[1][name], atol=2e-4), name


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


@pytest.mark.parametrize("train", ["{kind: lora, rank: 2, alpha: 2}", "{kind: full}"])
def test_a_float16_gradient_keeps_its_direction_in_a_mean_over_many_pairs(small_sd, train):
    found = {}
    for dtype in ("float32", "float16"):
        sampler, learner = pair(small_sd, model__train=train, model__dtype=dtype)
        made = batch(sampler, learner, count=1)
        held = {0: made[0][1]}
        passes = learner._passes(learner._blocks(made, [0]), held, None)
        many = 2**14 * sum(len(block) for blocks in passes for block in blocks)
        learner.loss_scale = learner._scale_for(many)
        for pairs in learner._pairs(held, passes):
            learner._accumulate(pairs, torch.tensor(ADVANTAGES), {}, (), objective.StepDiagnostics(4), count=many)
        gradients = [p.grad for p in learner.masters.values.values() if p.grad is not None]
        found[dtype] = torch.cat([gradient.flatten() for gradient in gradients]) / learner.loss_scale
    assert float(torch.nn.functional.cosine_similarity(found["float32"], found["float16"], dim=0)) > 0.99
    assert float(found["float16"].norm() / found["float32"].norm()) == pytest.approx(1, rel=0.05)


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


@pytest.mark.parametrize("average", ["null", 0.9])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_half_precision_checkpoint_has_the_masters_and_continues_to_the_bit(small_sd, tmp_path, dtype, average):
    changes = {"model__train": "{kind: full}", "model__dtype": dtype, "optimizer__learning_rate": 1e-5}
    sampler, learner = pair(small_sd, **changes, optimizer__average=average)
    learner.update(1, batch(sampler, learner))
    folder = tmp_path / "step-000001"
    learner.save(folder, DriverState(step=1))
    saved = checkpoints.read(folder)
    assert {value.dtype for value in (*saved.parameters.values(), *saved.averaged.values())} == {torch.float32}
    _, other = pair(small_sd, **changes, optimizer__average=average)
    other.restore(folder)
    groups = batch(sampler, learner)
    learner.update(2, groups)
    other.update(2, groups)
    assert all(torch.equal(value, other.masters.values[name]) for name, value in learner.masters.values.items())
    assert learner.weights().manifest.checksum == other.weights().manifest.checksum
    averaged = learner.weights(averaged=average != "null").manifest.checksum
    assert averaged == other.weights(averaged=average != "null").manifest.checksum
    drawn, _ = pair(small_sd, **changes)  # as `sample` loads it: into a network of the run's dtype
    distributed.load_parameters(folder, saved.best, drawn.policy.denoiser.trainable())


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
    assert learner.average.updates == 1
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


@pytest.mark.parametrize("average", ["null", 0.9])
def test_no_checkpoint_is_written_that_nobody_could_continue(small_sd, tmp_path, average):
    sampler, learner = pair(small_sd, optimizer__average=average)
    learner.update(1, batch(sampler, learner))
    broken = learner.masters.values if average == "null" else dict(enumerate(learner.average.values))
    next(iter(broken.values())).data.fill_(float("nan"))
    with pytest.raises(TrainingError, match="prediction is not finite"):
        learner.save(tmp_path / "step-000001", DriverState(step=1))
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_nobody_could_continue_is_refused_by_name(small_sd, tmp_path):
    from safetensors.torch import load_file, save_file

    _, learner = pair(small_sd)
    folder = tmp_path / "step-000000"
    learner.save(folder, DriverState(step=0))
    held = load_file(folder / "trainable.safetensors")
    save_file({name: value.fill_(float("nan")) for name, value in held.items()}, folder / "trainable.safetensors")
    state = json.loads((folder / "state.json").read_text())
    state["files"]["trainable.safetensors"] = checkpoints.checksum(folder / "trainable.safetensors")
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match="step-000000 cannot be continued"):
        learner.restore(folder)


def test_what_predicts_no_numbers_is_neither_sent_nor_blamed_on_the_transfer(small_sd):
    sampler, learner = pair(small_sd)
    sent = learner.weights()
    next(iter(learner.masters.values.values())).data.fill_(float("nan"))
    with pytest.raises(TrainingError, match="version 0 the network's prediction is not finite"):
        learner.weights()
    dict(sampler.policy.denoiser.module.named_parameters())["conv_in.bias"].data.fill_(float("nan"))
    with pytest.raises(WeightsError, match="prediction of this sampler is not finite"):
        sampler.load(sent)


# -- settings off the defaults -----------------------------------------------------------------------------------------


def test_the_published_loss_of_flow_cps_is_that_of_its_code(small_flux):
    """log-prob = -(x_next - mean)^2, without 1 / (2 std^2) (arXiv 2509.05952's code)."""
    process = "{kind: coefficients_preserving, eta: 0.7}"
    changes = {"sampling__process": process, "credit__kind": "native", "optimizer__minibatches": 2}
    sampler, learner = pair(small_flux, **changes, objective__log_ratio="flow_cps")
    update = learner.update(1, batch(sampler, learner))
    assert update.first_log_ratio == 0.0 and update.moved_fraction > 0
    made = batch(sampler, learner)
    learner.parameters["transformer_blocks.0.attn.to_q.lora_B.default.weight"].data.add_(0.02)
    held = {0: made[0][1]}
    for pairs in learner._pairs(held, learner._passes(learner._blocks(made, [0]), held, None)):
        step = learner.policy.credit.steps[pairs.indices[0]]
        x, old, z = (getattr(pairs, name).double() for name in ("latents", "predictions", "noises"))
        with torch.no_grad():
            new = learner._predict(pairs).double()
        drawn = step.scale * x + step.gain * old + step.std * z
        log_probs = [-(drawn - (step.scale * x + step.gain * v)).square().flatten(1).mean(1) for v in (new, old)]
        found = learner._log_ratio(new, pairs).double()
        assert torch.allclose(found, log_probs[0] - log_probs[1], rtol=1e-5, atol=0)
        assert float(found.abs().min()) > 0


def test_the_divergence_under_interpolate_has_the_weight_of_the_mixed_prediction(small_sd):
    """The sampler steps with reference + mix (policy - reference), so its Gaussians differ by mix times as much."""
    _, learner = pair(small_sd, credit__kind="interpolate", objective__kl=0.1)
    plan = learner.policy.credit
    expected = [mix * step.weight for mix, step in zip(plan.mix, plan.steps, strict=True)]
    assert learner.own_weights.tolist() == pytest.approx(expected)
    assert max(plan.mix) > 1.1 and min(plan.mix) < 0.9


@pytest.mark.parametrize("credit", ["{kind: tilted, slope: 0.5}", "reweight"])
def test_clip_ranges_follow_the_weights_of_the_credit_not_of_the_sampler(small_sd, credit):
    given = credit if credit.startswith("{") else f"{{kind: {credit}}}"
    _, learner = pair(small_sd, objective__clip_scale="weight", credit=given, sampling__steps=8)
    plan = learner.policy.credit
    mean = sum(plan.weights[index] for index in plan.trained) / len(plan.trained)
    assert learner.clip_ranges.tolist() == pytest.approx([0.01 * weight / mean for weight in plan.weights])
    assert plan.weights != pytest.approx([step.weight for step in plan.steps])


def test_a_first_minibatch_of_mixed_ages_is_not_held_to_a_log_ratio_of_zero(small_sd):
    sampler, learner = pair(small_sd)
    old = batch(sampler, learner, count=1)
    learner.update(1, old)
    fresh = batch(sampler, learner, count=1)
    mixed = [fresh[0], old[0]]
    assert learner.update(2, mixed).first_log_ratio > 1e-6
