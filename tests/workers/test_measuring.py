"""Credit that is measured while a group is sampled: what travels, what the learner makes of it, what is refused."""

import dataclasses
import itertools

import pytest
import torch

from pcpo_ray.algorithm import objective
from pcpo_ray.errors import ConfigError
from pcpo_ray.workers.packing import pack_trajectory, unpack_trajectory
from tests.support import small
from tests.support.trajectories import ADVANTAGES, batch, pair, same_bits, task

MEASURED = ("entropy", "attention")
measured = pytest.mark.parametrize("credit", MEASURED)
models = pytest.mark.parametrize("model", ["small_sd", "small_flux"])


def sampled(path, **changes):
    sampler, learner = pair(path, **changes)
    for n, parameter in enumerate(sampler.policy.denoiser.trainable().values()):
        parameter.data.add_(0.1 + 0.01 * n)
    return sampler, learner, sampler.sample(task(images=3))[0]


@models
@measured
def test_measured_weights_have_the_native_mean_for_each_image(request, model, credit):
    sampler, _, trajectory = sampled(request.getfixturevalue(model), credit__kind=credit, sampling__steps=6)
    plan = sampler.policy.credit
    native = sum(plan.steps[index].weight for index in plan.trained) / len(plan.trained)
    assert trajectory.weights.shape == (3, len(plan.trained)) and (trajectory.weights > 0).all()
    assert trajectory.weights.mean(1).tolist() == pytest.approx([native] * 3, rel=1e-5)
    assert float(trajectory.weights.std(1).min()) > 0.01 * native
    alike = torch.equal(trajectory.weights, trajectory.weights[:1].expand(3, -1))
    assert alike == (credit == "entropy")  # an expectation over the group, against each image's own attention


@models
def test_the_measure_of_entropy_follows_from_what_is_stored(request, model):
    """Of the predicted images of neighbouring trained steps, written down once more in float64."""
    sampler, _, trajectory = sampled(
        request.getfixturevalue(model), credit__kind="entropy", sampling__steps=6, sampling__trained_steps=5
    )
    policy = sampler.policy
    images = []
    for k, index in enumerate(policy.credit.trained):
        x, predicted = trajectory.latents[:, k].double(), trajectory.predictions[:, k].double()
        if model == "small_sd":
            alpha_bar = policy.schedule.alpha_bar[index]
            images.append(x / alpha_bar**0.5 - (1 / alpha_bar - 1) ** 0.5 * predicted)
        else:
            images.append(x - policy.schedule.times[index] * predicted)
    stds = [float((after - before).pow(2).mean()) ** 0.5 for before, after in itertools.pairwise(images)]
    weights = trajectory.weights[0].tolist()
    ratios = [weight / std for weight, std in zip(weights, stds, strict=False)]
    assert ratios == pytest.approx([ratios[0]] * 4, rel=1e-4)


@models
@measured
@pytest.mark.parametrize("changes", [{}, {"sampling__subset": "{kind: share, share: 0.5}"}])
def test_measured_weights_travel_to_the_bit(request, model, credit, changes):
    sampler, _, trajectory = sampled(request.getfixturevalue(model), credit__kind=credit, sampling__steps=6, **changes)
    packed = pack_trajectory(sampler.policy, task(images=3), trajectory)
    back = unpack_trajectory(sampler.policy, packed)
    assert same_bits(back, trajectory) and torch.equal(back.weights, trajectory.weights)
    part = unpack_trajectory(sampler.policy, packed, slice(1, 3))
    assert torch.equal(part.weights, trajectory.weights[1:])


@measured
def test_a_group_measures_the_same_whatever_passes_together(small_sd, credit):
    """The images of a group go through the network two at a time, or all at once; maps and images are the same."""
    found = [
        sampled(small_sd, credit__kind=credit, sampling__batch=size, sampling__guidance_scale=3.0)[2].weights
        for size in (2, 3)
    ]
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=0)


@models
@measured
def test_an_untrained_policy_has_log_ratio_zero_and_the_plain_sampler(request, model, credit):
    path = request.getfixturevalue(model)
    sampler, learner = pair(path, credit__kind=credit)
    plain, _ = pair(path, credit__kind="native")
    groups = batch(sampler, learner)
    _, images = sampler.sample(task())
    assert images.tobytes() == plain.sample(task())[1].tobytes()
    update = learner.update(1, groups)
    assert update.first_log_ratio == 0.0
    weights = torch.cat([trajectory.weights for _, trajectory, _ in groups])
    assert update.diagnostics["per_timestep"]["credit_weight"] == pytest.approx(weights.mean(0).tolist(), rel=1e-5)


@measured
@pytest.mark.parametrize("scale", ["constant", "weight"])
def test_each_pair_s_loss_has_its_own_weight_whatever_shares_a_pass(small_sd, credit, scale):
    """The norm of the gradient is that of the losses written down pair by pair; passes mix images and steps."""
    changes = {"credit__kind": credit, "objective__clip_scale": scale, "optimizer__max_gradient_norm": 1e9}
    sampler, learner = pair(small_sd, **changes, optimizer__micro_batch=8)
    groups = batch(sampler, learner)
    for parameter in learner.parameters.values():  # away from the weights that sampled
        parameter.data.add_(0.02)
    plan, policy, losses = learner.policy.credit, learner.policy, []
    for _, trajectory, _ in groups:
        rows = {name: row.expand(4, *row.shape[1:]) for name, row in trajectory.conditioning.items()}
        for k, index in enumerate(trajectory.steps.tolist()):
            weight = trajectory.weights[:, k]
            ratio = objective.log_ratio(
                policy.predict(trajectory.latents[:, k], index, rows),
                trajectory.predictions[:, k],
                trajectory.noises[:, k],
                weight=weight,
                sign=plan.steps[index].sign,
            )
            limit = 0.01 * (weight / plan.weights[index] if scale == "weight" else torch.ones(4))
            losses.append(objective.log_hinge(ratio, torch.tensor(ADVANTAGES), clip_range=limit))
    loss = torch.cat(losses).mean()
    wanted = torch.autograd.grad(loss, list(learner.parameters.values()))
    norm = torch.stack([gradient.norm() for gradient in wanted]).norm()
    update = learner.update(1, [(-1, trajectory, advantages) for _, trajectory, advantages in groups])
    assert update.loss == pytest.approx(float(loss.detach()), rel=1e-4, abs=1e-7)
    assert update.gradient_norm == pytest.approx(float(norm), rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"credit__kind": "entropy", "sampling__subset": "{kind: window, size: 2}"},
            "compares all trained steps",
        ),
        ({"credit__kind": "attention", "sampling__steps": 1}, "which compares the network's calls; use at least 2"),
    ],
)
def test_what_cannot_be_measured_is_refused_by_name(small_sd, changes, said):
    with pytest.raises(ConfigError, match=said):
        small.run(small_sd, **changes)


def test_attention_is_refused_where_its_maps_are_not_read(small_flux):
    run = small.run(small_flux, credit__kind="attention")
    with pytest.raises(ValueError, match=r"model\.kind=krea2, whose attention to the prompt is not read; expected one"):
        dataclasses.replace(run, model=dataclasses.replace(run.model, kind="krea2"))
