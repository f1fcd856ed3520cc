"""The learner: what one update does, and what it refuses."""

import pytest
import torch

from pcpo_ray import objective
from pcpo_ray.errors import TrainingError
from pcpo_ray.learner import Learner
from pcpo_ray.sampler import Sampler
from pcpo_ray.stages import State
from pcpo_ray.trajectory import Trajectory
from tests import small
from tests.test_sampler import task

CPU = torch.device("cpu")
ADVANTAGES = [1.0, -1.0, 0.5, -0.5]


def pair(path, **changes):
    run = small.run(path, **changes)
    return Sampler(run, CPU), Learner(run, CPU)


def batch(sampler, learner, count=2):
    sampler.load(learner.weights())
    made = [sampler.sample(task(position=n, version=learner.version))[0] for n in range(count)]
    return [(learner.version, trajectory, ADVANTAGES) for trajectory in made]


@pytest.mark.parametrize("model", ["small_sd", "small_flux"])
@pytest.mark.parametrize("size", ["null", 2])
def test_at_unchanged_weights_every_log_ratio_is_exactly_zero(model, size, request):
    sampler, learner = pair(request.getfixturevalue(model), sampling__batch=size)
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
    sampler, learner = pair(small_sd, optimizer__updates=2)
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


def test_the_gradient_is_that_of_the_mean_over_all_images_and_trained_steps(small_sd):
    sampler, learner = pair(small_sd, optimizer__max_gradient_norm=1e9)
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
    before = learner.weights().checksum
    trajectory = batch(sampler, learner, count=1)[0][1]
    update = learner.update(1, [(0, trajectory, [0.0] * 4)])
    assert update.gradient_norm == 0.0
    assert learner.weights().checksum == before


def test_what_travels_as_numpy_is_learned_to_the_same_bits(small_sd):
    sampler, learner = pair(small_sd)
    _, other = pair(small_sd)
    groups = batch(sampler, learner)
    learner.update(1, groups)
    other.update(1, [(v, Trajectory.from_numpy(t.to_numpy()), a) for v, t, a in groups])
    assert learner.weights().checksum == other.weights().checksum


def test_a_checkpoint_restores_parameters_and_optimizer_to_the_bit(small_sd, tmp_path):
    sampler, learner = pair(small_sd)
    learner.update(1, batch(sampler, learner))
    learner.save(tmp_path / "step-000001", State(step=1, history={"a": [1.0, 2.0]}))
    _, other = pair(small_sd)
    assert other.restore(tmp_path / "step-000001") == State(step=1, history={"a": [1.0, 2.0]})
    groups = batch(sampler, learner)
    learner.update(2, groups)
    other.update(2, groups)
    assert learner.weights().checksum == other.weights().checksum


def test_an_update_out_of_turn_is_refused(small_sd):
    sampler, learner = pair(small_sd)
    with pytest.raises(TrainingError, match="expected 1"):
        learner.update(2, batch(sampler, learner))


def test_full_fine_tuning_learns_and_its_checkpoint_is_a_pipeline(small_sd, tmp_path):
    from diffusers import StableDiffusionPipeline

    sampler, learner = pair(small_sd, model__train="{kind: full}")
    update = learner.update(1, batch(sampler, learner))
    assert update.diagnostics["overall"]["max_log_ratio"] == 0.0
    learner.save(tmp_path / "step-000001", State(step=1))
    loaded = dict(StableDiffusionPipeline.from_pretrained(tmp_path / "step-000001").unet.named_parameters())
    assert all(torch.equal(parameter, loaded[name]) for name, parameter in learner.parameters.items())


def test_bf16_autocast_keeps_the_first_ratio_at_one(small_sd):
    sampler, learner = pair(small_sd, optimizer__mixed_precision="bf16")
    update = learner.update(1, batch(sampler, learner))
    assert update.diagnostics["overall"]["max_log_ratio"] == 0.0
