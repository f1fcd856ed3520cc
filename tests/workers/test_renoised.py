"""AWM's pairs: images drawn without noise and noised anew, on their way from the sampler to the learner's loss."""

import pickle

import pytest
import torch

from pcpo_ray.errors import ConfigError
from pcpo_ray.workers.packing import pack_trajectory, unpack_trajectory
from tests.support import small
from tests.support.trajectories import ADVANTAGES, batch, pair, same_bits, task

AWM = {"sampling__process": "{kind: renoised, omega: time}", "credit__kind": "native", "sampling__steps": 5}


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    "changes", [{}, {"sampling__subset": "{kind: window, size: 1, order: per_prompt}"}, {"sampling__trained_steps": 3}]
)
def test_noised_pairs_open_to_the_bit_from_predictions_and_final_latents(small_flux, storage, changes):
    sampler, _ = pair(small_flux, **AWM, sampling__storage=storage, **changes)
    trajectory, _ = sampler.sample(task())
    packed = pack_trajectory(sampler.policy, task(), trajectory)
    back = unpack_trajectory(sampler.policy, pickle.loads(pickle.dumps(packed, protocol=5)))
    assert packed.latents[1].shape[1] == 1 and same_bits(back, trajectory)
    part = unpack_trajectory(sampler.policy, packed, slice(1, 3))
    assert torch.equal(part.noises, trajectory.noises[1:3])


def test_images_are_drawn_by_the_ode_whatever_is_trained(small_flux):
    sampler, _ = pair(small_flux, **AWM)
    policy = sampler.policy
    latents, texts = policy.initial_noise(task()), policy.denoiser.encode([task().prompt.text])
    rows = {name: row.expand(4, *row.shape[1:]) for name, row in texts.items()}
    with torch.no_grad():
        for index, dt in enumerate(policy.schedule.dt):
            latents = latents - dt * policy.predict(latents, index, rows)
    trajectory, images = sampler.sample(task())
    torch.testing.assert_close(trajectory.clean, latents, rtol=1e-4, atol=1e-5)
    assert images.tobytes() == sampler.policy.denoiser.decode(trajectory.clean).tobytes()
    assert trajectory.steps.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("credit", ["native", "reweight", "proportionate"])
def test_the_update_is_that_of_advantage_weighted_matching(small_flux, credit):
    """The gradient of the mean of -A (rho - 1), rho the ratio of exp(-omega error), with the credit's omega."""
    changes = {**AWM, "credit__kind": credit, "objective": "{kind: clipped_ratio, clip_range: 10}"}
    sampler, learner = pair(small_flux, **changes, optimizer__max_gradient_norm=1e9)
    groups = batch(sampler, learner)
    assert learner.update(1, groups).first_log_ratio == 0.0
    policy, plan, losses = learner.policy, learner.policy.credit, []
    for _, trajectory, _ in groups:
        rows = {name: row.expand(4, *row.shape[1:]) for name, row in trajectory.conditioning.items()}
        for k, index in enumerate(trajectory.steps.tolist()):
            time, omega = policy.schedule.times[index], plan.weights[index] ** 2 / 2
            eps = (trajectory.latents[:, k] - (1 - time) * trajectory.clean) / time
            errors = [
                (velocity - (eps - trajectory.clean)).square().flatten(1).mean(1)
                for velocity in (policy.predict(trajectory.latents[:, k], index, rows), trajectory.predictions[:, k])
            ]
            own = omega if credit == "native" else None
            assert own is None or own == pytest.approx(time)
            # a weight of another credit replaces sqrt(2 omega) in the step, whose residual keeps the process's own
            scale = plan.weights[index] / (2 * time) ** 0.5
            change = policy.predict(trajectory.latents[:, k], index, rows) - trajectory.predictions[:, k]
            ratio = -time * (errors[0] - errors[1])
            if credit != "native":
                drift = change.square().flatten(1).mean(1)
                ratio = scale * (ratio + time * drift) - omega * drift
            losses.append(-torch.tensor(ADVANTAGES) * ratio.expm1())
    loss = torch.cat(losses).mean()
    wanted = torch.autograd.grad(loss, list(learner.parameters.values()))
    norm = torch.stack([gradient.norm() for gradient in wanted]).norm()
    update = learner.update(2, groups)
    assert update.loss == pytest.approx(float(loss.detach()), rel=1e-3, abs=1e-7)
    assert update.gradient_norm == pytest.approx(float(norm), rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"credit__kind": "grpo_guard"}, "credit.kind=grpo_guard"),
        ({"credit__kind": "flash_grpo"}, "credit.kind=flash_grpo"),
        ({"credit__kind": "entropy"}, "credit.kind=entropy"),
        ({"objective__step_loss": "noise"}, "objective.step_loss=noise"),
        ({"objective__log_ratio": "replay"}, "objective.log_ratio=replay"),
        ({"objective__correction": 1.0}, "objective.correction=1"),
        ({"evaluation__sampling": "{steps: 8}"}, "evaluation.sampling with the sampler's noise"),
        ({"sampling__shared_noise": "true"}, "sampling.shared_noise is true"),
    ],
)
def test_what_needs_a_step_s_noise_is_refused_by_name(small_flux, changes, said):
    with pytest.raises(ConfigError, match=f"{said}.* with sampling.process.kind=renoised"):
        small.run(small_flux, **{**AWM, **changes})


def test_a_diffusion_model_has_no_noised_pairs(small_sd):
    with pytest.raises(ConfigError, match=r"sampling\.process\.kind is 'renoised', which model\.kind=stable_diffusion"):
        small.run(small_sd, **AWM)
