"""The loss: log-ratios, KL, clip ranges and the correction for older weights, against their formulas."""

import math

import pytest
import torch

from pcpo_ray.algorithm import objective
from pcpo_ray.algorithm.diagnostics import TimestepDiagnostics
from pcpo_ray.workers.learner import mini_batches
from pcpo_ray.workers.learner.loss import Loss, loss_scale
from tests.support.trajectories import ADVANTAGES, batch, pair


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


def test_a_clip_range_in_proportion_to_the_weights_keeps_its_mean(small_sd):
    _, learner = pair(small_sd, objective__clip_scale="weight", credit__kind="native", sampling__steps=8)
    plan = learner.policy.credit
    assert float(learner.loss.of_steps().limits.mean()) == pytest.approx(0.01)
    ratios = learner.loss.of_steps().limits / torch.tensor(plan.weights)
    assert ratios.tolist() == pytest.approx([float(ratios[0])] * 8, rel=1e-6)
    _, constant = pair(small_sd, sampling__steps=8)
    assert constant.loss.of_steps().limits.tolist() == pytest.approx([0.01] * 8)


def test_a_step_s_loss_is_scaled_by_its_noise_outside_the_clip(small_flux):
    sampler, learner = pair(small_flux, objective__step_loss="noise", sampling__process="{kind: ratio_noise}")
    plan = learner.policy.credit
    stds = [plan.steps[index].std for index in plan.trained]
    factors = learner.loss.of_steps().factors[list(plan.trained)].tolist()
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
    changes |= {"objective__correction": 1.2, "optimizer__learning_rate": 0.1, "optimizer__minibatches": updates}
    sampler, learner = pair(small_sd, **changes)
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


def test_without_a_correction_the_log_ratio_is_against_the_sampler(small_sd):
    sampler, learner = pair(small_sd)
    groups = batch(sampler, learner)
    learner.update(1, groups)
    assert learner.update(2, groups).diagnostics["overall"]["max_log_ratio"] > 1e-6


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("model", ["small_sd", "small_flux"])
def test_the_decomposed_log_ratio_is_zero_in_every_storage_dtype(model, storage, request):
    changes = {"sampling__storage": storage, "credit__kind": "native", "optimizer__minibatches": 1}
    sampler, learner = pair(request.getfixturevalue(model), **changes)
    update = learner.update(1, batch(sampler, learner))
    assert update.diagnostics["overall"]["max_log_ratio"] == 0.0
    assert update.gradient_norm > 0


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


@pytest.mark.parametrize("train", ["{kind: lora, rank: 2, alpha: 2}", "{kind: full}"])
def test_a_float16_gradient_keeps_its_direction_in_a_mean_over_many_pairs(small_sd, train):
    found = {}
    for dtype in ("float32", "float16"):
        sampler, learner = pair(small_sd, model__train=train, model__dtype=dtype)
        made = batch(sampler, learner, count=1)
        held, loader = {0: made[0][1]}, learner.loader
        passes = loader.passes(loader.blocks(made, [0]), held, None)
        many = 2**14 * sum(len(block) for blocks in passes for block in blocks)
        scale = loss_scale({getattr(torch, dtype)}, math.prod(learner.policy.denoiser.latent_shape), many)
        for pairs in loader.pairs(held, passes):
            noted = TimestepDiagnostics(4)
            loss, _ = learner.loss.of_pass(pairs, torch.tensor(ADVANTAGES), {}, (), noted, count=many)
            (scale * loss).backward()
        gradients = [p.grad for p in learner.masters.values.values() if p.grad is not None]
        found[dtype] = torch.cat([gradient.flatten() for gradient in gradients]) / scale
    assert float(torch.nn.functional.cosine_similarity(found["float32"], found["float16"], dim=0)) > 0.99
    assert float(found["float16"].norm() / found["float32"].norm()) == pytest.approx(1, rel=0.05)


def test_the_published_loss_of_flow_cps_is_that_of_its_code(small_flux):
    """log-prob = -(x_next - mean)^2, without 1 / (2 std^2) (arXiv 2509.05952's code)."""
    process = "{kind: coefficients_preserving, eta: 0.7}"
    changes = {"sampling__process": process, "credit__kind": "native", "optimizer__minibatches": 2}
    sampler, learner = pair(small_flux, **changes, objective__log_ratio="flow_cps")
    update = learner.update(1, batch(sampler, learner))
    assert update.first_log_ratio == 0.0 and update.moved_fraction > 0
    made = batch(sampler, learner)
    learner.parameters["transformer_blocks.0.attn.to_q.lora_B.default.weight"].data.add_(0.02)
    held, loader = {0: made[0][1]}, learner.loader
    for pairs in loader.pairs(held, loader.passes(loader.blocks(made, [0]), held, None)):
        step = learner.policy.credit.steps[pairs.indices[0]]
        x, old, z = (getattr(pairs, name).double() for name in ("latents", "predictions", "noises"))
        with torch.no_grad():
            new = learner.loss.predict(pairs).double()
        drawn = step.scale * x + step.gain * old + step.std * z
        log_probs = [-(drawn - (step.scale * x + step.gain * v)).square().flatten(1).mean(1) for v in (new, old)]
        found = learner.loss.log_ratio(new, pairs).double()
        assert torch.allclose(found, log_probs[0] - log_probs[1], rtol=1e-5, atol=0)
        assert float(found.abs().min()) > 0


def test_under_interpolate_kl_has_the_weight_of_the_mixed_prediction(small_sd):
    """The sampler steps with reference + mix (policy - reference), so its Gaussians differ by mix times as much."""
    _, learner = pair(small_sd, credit__kind="interpolate", objective__kl=0.1)
    plan = learner.policy.credit
    expected = [mix * step.weight for mix, step in zip(plan.mix, plan.steps, strict=True)]
    assert learner.loss.of_steps().own_weights.tolist() == pytest.approx(expected)
    assert max(plan.mix) > 1.1 and min(plan.mix) < 0.9


@pytest.mark.parametrize("credit", ["{kind: tilted, slope: 0.5}", "reweight"])
def test_clip_ranges_follow_the_weights_of_the_credit_not_of_the_sampler(small_sd, credit):
    given = credit if credit.startswith("{") else f"{{kind: {credit}}}"
    _, learner = pair(small_sd, objective__clip_scale="weight", credit=given, sampling__steps=8)
    plan = learner.policy.credit
    mean = sum(plan.weights[index] for index in plan.trained) / len(plan.trained)
    assert learner.loss.of_steps().limits.tolist() == pytest.approx([0.01 * weight / mean for weight in plan.weights])
    assert plan.weights != pytest.approx([step.weight for step in plan.steps])


def test_a_loss_needs_a_policy_and_settings_but_no_optimizer(small_sd):
    sampler, learner = pair(small_sd, objective__correction=2.0)
    made = batch(sampler, learner, count=1)
    loss, loader = Loss(learner.policy, learner.run.objective), learner.loader
    noted, blocks = TimestepDiagnostics(4), loader.blocks(made, [0])
    held, total = {0: made[0][1]}, torch.zeros(())
    for pairs in loader.pairs(held, loader.passes(blocks, held, None)):
        mean, divergence = loss.of_pass(pairs, torch.tensor(ADVANTAGES), {}, (), noted, count=sum(map(len, blocks)))
        assert mean.requires_grad and float(divergence) == 0
        total = total + mean
    expected = learner.run.objective.clip_range * torch.tensor(ADVANTAGES).abs().mean()
    assert float(total) == pytest.approx(float(expected))
    assert noted.overall()["max_log_ratio"] == 0
    assert loss.take_importance(learner.rank) is None  # no group was sampled by older weights


@pytest.mark.parametrize("dtypes", [{torch.float32}, {torch.bfloat16, torch.float32}])
def test_only_float16_scales_the_loss(dtypes):
    assert loss_scale(dtypes, 64, 1000) == 1.0
    assert loss_scale({*dtypes, torch.float16}, 64, 1000) == 2.0**16
