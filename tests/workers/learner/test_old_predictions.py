"""Old predictions: the sampler's, or the learner's own, with the mismatch between both measured and corrected."""

import math

import pytest
import torch

from pcpo_ray.errors import TrainingError
from pcpo_ray.workers.learner import autotune, mini_batches
from pcpo_ray.workers.learner.learner import Learner
from pcpo_ray.workers.learner.old_predictions import later_parts
from pcpo_ray.workers.sampler import Sampler
from tests.support import lockstep, small
from tests.support.trajectories import ADVANTAGES, CPU, batch, pair
from tests.workers.learner.test_distributed import learn, sampled

RECOMPUTED = {"objective__old_predictions": "recomputed"}
ROUNDING = {"optimizer__mixed_precision": "bf16"}
STILL = {"optimizer__weight_decay": 0}
"""With advantages of 0, no update moves a weight."""


def without_gradient(groups):
    return [(version, trajectory, [0.0] * 4) for version, trajectory, _ in groups]


def otherwise(path, learner, count=2, **changes):
    """A batch that another kind of sampler made with the learner's weights."""
    return batch(Sampler(small.run(path, **changes), CPU), learner, count)


@pytest.mark.parametrize("model", ["small_sd", "small_flux"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer__minibatches": 2},
        {"optimizer__minibatches": 2, "optimizer__epochs": 2, "objective__kl": 0.1},
        {"objective__kind": "clipped_ratio"},
        {"sampling__batch": 2, "optimizer__minibatches": 2, "objective__correction": 2.0},
    ],
)
def test_where_both_compute_the_same_they_learn_the_same_bits(model, changes, request):
    found = []
    for kind in ("sampled", "recomputed"):
        given = {**changes, "objective__old_predictions": kind}
        sampler, learner = pair(request.getfixturevalue(model), **given)
        updates = [learner.update(step, batch(sampler, learner)) for step in (1, 2)]
        found.append((updates, learner.masters.values))
    (one, theirs), (other, ours) = found
    assert all(torch.equal(value, ours[name]) for name, value in theirs.items())
    assert [update.loss for update in one] == [update.loss for update in other]
    assert [update.mismatch for update in one] == [None, None]
    assert [update.mismatch for update in other] == [{"rms": 0.0, "largest": 0.0}] * 2


@pytest.mark.parametrize(
    ("dtype", "storage"), [("float32", "float32"), ("float32", "bfloat16"), ("bfloat16", "float32")]
)
@pytest.mark.parametrize("micro_batch", [1, 16, "null"])
def test_the_first_log_ratio_is_zero_whatever_the_learner_computes_with(small_flux, micro_batch, storage, dtype):
    """At unmoved weights so are those of later mini-batches, which were predicted before."""
    changes = {"model__dtype": dtype, "optimizer__micro_batch": micro_batch, "optimizer__minibatches": 2}
    _, learner = pair(small_flux, **changes, **RECOMPUTED, **STILL, sampling__storage=storage)
    groups = otherwise(small_flux, learner, count=3, sampling__batch=3, model__dtype=dtype, sampling__storage=storage)
    before = {name: value.clone() for name, value in learner.masters.values.items()}
    update = learner.update(1, without_gradient(groups))
    assert update.first_log_ratio == update.diagnostics["overall"]["max_log_ratio"] == 0.0
    assert update.mismatch is not None
    assert all(torch.equal(value, before[name]) for name, value in learner.masters.values.items())


@pytest.mark.parametrize("model", ["small_sd", "small_flux"])
def test_the_mismatch_is_that_of_a_sampler_that_rounds(model, request):
    """A sampler in bfloat16, measured against densities in float64."""
    path = request.getfixturevalue(model)
    _, learner = pair(path, optimizer__minibatches=2, objective__max_mismatch=0.1, **RECOMPUTED)
    groups = otherwise(path, learner, **ROUNDING)
    plan, found, values = learner.policy.credit, [], []
    for k, index in enumerate(groups[0][1].steps.tolist()):
        for _, one, _ in groups:
            texts = {name: row.expand(4, *row.shape[1:]).float() for name, row in one.conditioning.items()}
            with torch.no_grad():
                exact = learner.policy.predict(one.latents[:, k], index, texts).double()
            d, z, step = exact - one.predictions[:, k], one.noises[:, k].double(), plan.steps[index]
            densities = 0.5 * (z.square() - (z - step.gain / step.std * d).square())
            values.append(densities.flatten(1).mean(1))
        found.append(float(torch.stack(values[-len(groups) :]).square().mean().sqrt()))
    update = learner.update(1, groups)
    measured = update.diagnostics["per_timestep"]["mismatch"]
    assert min(found) > 1e-7 and measured == pytest.approx(found, rel=2e-2)
    every = torch.stack(values)
    assert update.mismatch["rms"] == pytest.approx(float(every.square().mean().sqrt()), rel=2e-2)
    assert update.mismatch["largest"] == pytest.approx(float(every.abs().max()), rel=2e-2)
    assert update.first_log_ratio == 0.0


def test_the_loss_is_decoupled_ppo_of_three_policies(small_sd):
    """min(old / sampler, most) times the surrogate of theta / old, from densities in float64 (arXiv 2110.00641)."""
    changes = {"credit__kind": "native", "objective__kind": "clipped_ratio", "objective__clip_range": 10}
    changes |= {"objective__correction": 1.1, "optimizer__max_gradient_norm": 1e9, "objective__max_mismatch": 0.1}
    _, learner = pair(small_sd, **changes, **RECOMPUTED)
    (_, one, _), *_ = groups = otherwise(small_sd, learner, count=1, **ROUNDING)
    texts = {name: row.expand(4, *row.shape[1:]).float() for name, row in one.conditioning.items()}
    advantage, losses, weights = torch.tensor(ADVANTAGES).double(), [], []
    for k, index in enumerate(one.steps.tolist()):
        step = learner.policy.credit.steps[index]
        x, v, z = (getattr(one, name)[:, k].double() for name in ("latents", "predictions", "noises"))
        drawn = step.scale * x + step.gain * v + step.std * z

        def density(prediction, step=step, x=x, drawn=drawn):
            return -0.5 * ((drawn - step.scale * x - step.gain * prediction) / step.std).square().flatten(1)

        theta = learner.policy.predict(one.latents[:, k], index, texts).double()
        old = theta.detach()
        weight = (density(old) - density(v)).sum(1).exp().clamp(max=1.1)
        ratio = (density(theta) - density(old)).mean(1).exp()
        losses.append(-advantage * weight * ratio)
        weights.append(weight)
    torch.cat(losses).mean().backward()
    norm = torch.stack([p.grad.norm() for p in learner.parameters.values() if p.grad is not None]).norm()
    learner.optimizer.zero_grad()
    update = learner.update(1, groups)
    every = torch.cat(weights)
    assert update.gradient_norm == pytest.approx(float(norm), rel=1e-3)
    assert update.importance["mean"] == pytest.approx(float(every.mean()), rel=1e-4)
    assert update.importance["truncated"] == pytest.approx(float((every >= 1.1).double().mean()))
    assert float(every.std()) > 1e-3


def test_older_samples_are_weighed_and_without_a_correction_refused(small_sd):
    found = []
    for kind in ("sampled", "recomputed"):
        changes = {"objective__correction": 1.5, "credit__kind": "native", "objective__old_predictions": kind}
        sampler, learner = pair(small_sd, **changes, optimizer__minibatches=2)
        groups = batch(sampler, learner)
        learner.update(1, groups)
        update = learner.update(2, groups)
        found.append((update, learner.masters.values))
    (one, theirs), (other, ours) = found
    assert other.mismatch is None and "mismatch" not in other.diagnostics["per_timestep"]
    assert other.importance == pytest.approx(one.importance, rel=1e-4)
    assert other.gradient_norm == pytest.approx(one.gradient_norm, rel=1e-3)
    assert all(torch.allclose(value, ours[name], atol=1e-4) for name, value in theirs.items())
    sampler, learner = pair(small_sd, **RECOMPUTED)
    groups = batch(sampler, learner)
    learner.update(1, groups)
    with pytest.raises(TrainingError, match=r"sampled by version 0.*expected 1: set objective\.correction"):
        learner.update(2, groups)


def test_a_mismatch_beyond_the_limit_stops_before_a_weight_moves(small_flux):
    _, learner = pair(small_flux, objective__max_mismatch=1e-6, optimizer__minibatches=2, **RECOMPUTED)
    before = {name: value.clone() for name, value in learner.masters.values.items()}
    groups = otherwise(small_flux, learner, **ROUNDING)
    with pytest.raises(TrainingError, match=r"at version 0, step \d, .*at most objective\.max_mismatch=1e-06"):
        learner.update(1, groups)
    assert all(torch.equal(value, before[name]) for name, value in learner.masters.values.items())


def test_a_sampler_of_other_weights_is_found_out_by_its_mismatch(small_sd):
    sampler, learner = pair(small_sd, **RECOMPUTED)
    groups = batch(sampler, learner)
    for parameter in learner.masters.values.values():
        parameter.data.add_(0.1)
    with pytest.raises(TrainingError, match=r"expected at most objective\.max_mismatch=0\.001"):
        learner.update(1, groups)


def test_only_pairs_after_the_first_optimizer_step_are_predicted_twice(small_sd, monkeypatch):
    for minibatches, epochs, expected in ((1, 1, 12), (3, 1, 12 + 8), (3, 2, 24 + 8), (1, 2, 24)):
        changes = {"optimizer__minibatches": minibatches, "optimizer__epochs": epochs}
        sampler, learner = pair(small_sd, **changes, **RECOMPUTED)
        groups, calls, predict = batch(sampler, learner, count=3), [], learner.loss.predict

        def counted(pairs, calls=calls, predict=predict):
            calls.append(pairs)
            return predict(pairs)

        monkeypatch.setattr(learner.loss, "predict", counted)
        learner.update(1, groups)
        assert len(calls) == expected


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_block_is_predicted_in_the_pass_that_trains_on_it(count):
    blocks = mini_batches.cut_into_blocks(dict.fromkeys(range(4), (4, 2)), 2)
    epochs = [[blocks[:8], blocks[8:]], [blocks[4:12], blocks[:4] + blocks[12:]]]
    for rank in range(count):
        shares = [mini_batches.rank_share(part, rank, count) for epoch in epochs for part in epoch]
        later = later_parts(shares)
        keys = [block.key for part in later for block in part]
        assert later[0] == shares[1] and len(keys) == len(set(keys))
        assert {*keys, *(block.key for block in shares[0])} == {block.key for share in shares for block in share}


@pytest.mark.parametrize("changes", [{}, {"optimizer__epochs": 2, "objective__correction": 2.0}])
def test_ranks_learn_and_measure_what_one_rank_does(small_sd, changes):
    given = {**changes, **RECOMPUTED, "optimizer__minibatches": 2, "rollout__prompts": 2, "optimizer__micro_batch": 2}
    run = small.run(small_sd, **given, optimizer__max_gradient_norm=1e9)
    alone, together = Learner(run, CPU), [Learner(run, CPU, rank) for rank in lockstep.ranks(3)]
    for learner in (alone, *together):
        learner.optimizer.optimizer.param_groups[0]["eps"] = 1e-3
    rounds = Sampler(small.run(small_sd, rollout__prompts=2, sampling__storage="bfloat16"), CPU)
    groups = batch(rounds, alone)
    expected = alone.update(1, groups)
    found = lockstep.at_once(lambda one: one.update(1, groups), together)
    for update in found:
        assert not isinstance(update, Exception), update
        assert update.mismatch == pytest.approx(expected.mismatch, rel=1e-4) and update.mismatch["rms"] > 1e-7
        assert update.gradient_norm == pytest.approx(expected.gradient_norm, rel=1e-4)
        assert update.first_log_ratio == 0.0
        table = [one.diagnostics["per_timestep"]["mismatch"] for one in (update, expected)]
        assert table[0] == pytest.approx(table[1], rel=1e-4)
    for name, value in alone.masters.values.items():
        assert torch.allclose(value, together[0].masters.values[name], rtol=1e-4, atol=1e-6), name


def test_a_mismatch_on_one_rank_ends_the_update_of_all(small_sd):
    run = small.run(small_sd, rollout__prompts=3, **RECOMPUTED)
    together = [Learner(run, CPU, rank) for rank in lockstep.ranks(3)]
    groups = sampled(Sampler(run, CPU), together[0], 1, 3)
    predict = together[2].loss.predict
    together[2].loss.predict = lambda pairs: predict(pairs) + 0.5
    raised = learn(together, run, 1, groups)
    assert [type(one) for one in raised] == [TrainingError] * 3
    assert len({str(one) for one in raised}) == 1 and "objective.max_mismatch" in str(raised[0])


def test_any_micro_batch_is_a_choice_where_bits_do_not_count(small_sd, monkeypatch):
    _, learner = pair(small_sd, optimizer__micro_batch="auto", **RECOMPUTED)
    monkeypatch.setattr(learner.policy, "predict", lambda latents, *_: latents * len(latents))
    seen = []

    def measured(sizes, same, learn, device):
        seen.extend(same(size) for size in sizes)
        return torch.tensor([math.inf if size < sizes[-1] else 1.0 for size in sizes])

    monkeypatch.setattr(autotune, "measure", measured)
    groups = otherwise(small_sd, Learner(learner.run, CPU), count=3)
    blocks = learner.loader.blocks(groups, [0, 1, 2])
    learner.autotune(groups, blocks, blocks)
    assert seen == [True] * 4 and learner.micro_batch == 32


def test_pairs_of_noised_images_have_old_predictions_too(small_flux):
    """Their residual is that of the old prediction from the target (transitions/renoised.py)."""
    changes = {"sampling__process": "{kind: renoised}", "credit__kind": "native", "optimizer__minibatches": 2}
    found = []
    for kind in ("sampled", "recomputed"):
        sampler, learner = pair(small_flux, **changes, objective__old_predictions=kind)
        learner.update(1, batch(sampler, learner))
        found.append(learner.masters.values)
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_a_group_that_travelled_has_old_predictions_of_its_own(small_sd):
    sampler, learner = pair(small_sd, optimizer__minibatches=2, **RECOMPUTED)
    groups = sampled(sampler, learner, 1, 2)
    assert learner.update(1, groups).mismatch == {"rms": 0.0, "largest": 0.0}
