"""Sampler, learner, trajectory and scorer beside their limits: the limit does the same work, and nothing else."""

import dataclasses
import importlib.util
import math

import pytest
import torch

from pcpo_ray.commands.bench import bare, learner, ranks, sampler, scoring, serving, trajectory, work
from pcpo_ray.data.tensors import device_here
from pcpo_ray.errors import BenchError
from pcpo_ray.models.policy import Policy
from pcpo_ray.models.stable_diffusion import StableDiffusion
from pcpo_ray.rewards import jpeg
from tests.support import small


@pytest.fixture
def forwards(monkeypatch):
    """The batch shapes that went through the network, in order."""
    seen, forward = [], StableDiffusion.forward

    def counted(self, latents, timesteps, conditioning):
        seen.append(tuple(latents.shape))
        return forward(self, latents, timesteps, conditioning)

    monkeypatch.setattr(StableDiffusion, "forward", counted)
    return seen


def quiet(line):
    pass


@pytest.mark.parametrize("changes", [{}, {"sampling__batch": 3}, {"credit": "{kind: interpolate}"}])
def test_the_samplers_limit_calls_the_network_as_the_sampler_does(small_sd, forwards, changes):
    run = small.run(small_sd, **changes)
    measured, absent = sampler.measure(run, 1, quiet)
    assert len(forwards) % 4 == 0
    calls = len(forwards) // 4  # figure and limit to warm up, and once each
    assert forwards[:calls] == forwards[calls : 2 * calls]
    assert all(shape[0] in (8, 6, 2) for shape in forwards)  # guidance doubles them
    assert measured.name == "sampler, CPU" and measured.goal.value == 0.95
    assert measured.ratios == (measured.figures[0] / measured.limits[0],)
    assert absent.unmeasured == "no GPU here" and absent.goal.value == 0.97


def test_a_bare_call_is_the_one_by_which_a_policy_predicts(small_sd):
    run = small.run(small_sd, sampling__guidance_scale=1.0)
    policy = Policy(run, device_here())
    latents = policy.denoiser.initial_noise(torch.Generator().manual_seed(0))[None].expand(2, -1, -1, -1)
    conditioning = policy.denoiser.encode(["a red circle", "a blue square"])
    found = bare.forward(policy, bare.call(policy, latents, 1, conditioning))
    assert (found == policy.predict(latents, 1, conditioning)).all()
    assert bare.decode(policy, latents).shape == (2, 3, 16, 16)


def test_the_learners_limit_has_the_pairs_of_the_update(small_sd, forwards):
    run = learner.measured_on(small.run(small_sd, optimizer__minibatches=2, sampling__guidance_scale=1.0))
    (measured,) = learner.measure(run, 1, quiet)
    pairs = 3 * 4 * 4
    assert measured.facts["pairs"] == pairs
    tried = {int(size) for size in measured.facts["bare pairs/s by micro-batch"]}
    assert tried == {2, 4, 8, 16, 32, 48} and measured.facts["best micro-batch"] in tried
    best = measured.facts["best micro-batch"]
    bare_pass = forwards[-math.ceil(pairs / best) :]  # the limit comes last in an odd number of repeats
    assert sum(shape[0] for shape in bare_pass) == pairs and max(shape[0] for shape in bare_pass) == best
    assert len(measured.figures) == len(measured.limits) == 1


def test_every_repeat_of_an_update_starts_from_the_weights_that_sampled(small_sd):
    run = learner.measured_on(small.run(small_sd))
    assert run.optimizer.learning_rate == learner.RATE
    learner.measure(run, 3, quiet)  # a log-ratio that is not 0 would be an error


def test_pairs_are_those_of_all_groups_at_their_steps(small_sd):
    run = small.run(small_sd, sampling__subset="{kind: share, share: 0.5}")
    trajectories = [group.trajectory for group in work.sampled(run, device_here())]
    pairs = learner._joined(trajectories, device_here())
    count = sum(len(one) * len(one.steps) for one in trajectories)
    assert len(pairs.latents) == len(pairs.steps) == len(pairs.conditioning["embeds"]) == count
    last = trajectories[-1]
    assert pairs.steps[-len(last) :].tolist() == [int(last.steps[-1])] * len(last)
    assert torch.equal(pairs.latents[-len(last) :], last.latents[:, -1])
    assert torch.equal(pairs.conditioning["embeds"][-1], last.conditioning["embeds"][0])


def test_a_trajectorys_bytes_are_those_that_are_pickled(small_sd):
    run = trajectory.measured_on(small.run(small_sd))
    (measured,) = trajectory.measure(run, 5, quiet)
    (group,) = work.sampled(run, device_here())
    assert measured.limits == (4 * 4 * 8 * 8 * 4.0,)  # 4 steps of 4 x 8 x 8 latents in float32
    assert measured.figures[0] >= group.packed.bytes / 4
    assert measured.facts["trained steps"] == 4
    half = trajectory.measured_on(small.run(small_sd, model__dtype="bfloat16"))
    assert trajectory.measure(half, 1, quiet)[0].limits == (measured.limits[0] / 2,)


def test_scoring_is_measured_against_the_image_tower_alone(small_sd):
    run = small.run(small_sd, rewards="[{kind: clip_score}, {kind: jpeg_compressibility}]", rollout__prompts=2)
    (measured,) = scoring.measure(run, 1, quiet)
    assert measured.facts["images"] == 8
    assert {int(size) for size in measured.facts["clip_score: bare images/s by batch"]} == {2, 4, 8}
    assert measured.ratios[0] == measured.figures[0] / measured.limits[0]


def test_a_reward_that_gives_no_scores_is_not_measured(small_sd):
    run = small.run(small_sd, rewards="[{kind: 'tests.commands.bench.test_roles:Broken'}]")
    with pytest.raises(BenchError, match=r"a reward gave no scores.*out of order"):
        scoring.measure(run, 1, quiet)


class Broken:
    def score(self, images, prompts):
        raise RuntimeError("out of order")


def test_batch_sizes_to_try_are_powers_of_two_and_all_at_once():
    assert list(work.sizes(12)) == [2, 4, 8, 12]
    assert list(work.sizes(16)) == [2, 4, 8, 16]
    assert list(work.sizes(1)) == [1]


def test_a_role_of_so_many_workers_stays_at_that(small_sd):
    role = dataclasses.replace(small.run(small_sd).workers.samplers, workers=2, min=1, max=4)
    fixed = work.counted(role, 3)
    assert (fixed.workers, fixed.max) == (3, None)


def test_four_ranks_on_two_groups_idle_in_no_pass_where_half_did(small_sd):
    run = ranks.measured_on(small.run(small_sd, rollout__images=8, sampling__batch=4))
    (row,) = ranks.measure(run, 5, quiet)
    assert (row.figures, row.limits, row.reached) == ((0.0,), (0.5,), True)
    assert row.facts["passes of each rank"] == [4, 4, 4, 4]
    assert row.facts["where each learns whole groups"] == [8, 8, 0, 0]
    (uneven,) = ranks.measure(ranks.measured_on(small.run(small_sd, sampling__trained_steps=3)), 1, quiet)
    assert uneven.facts["passes of each rank"] == [2, 2, 1, 1] and not uneven.reached


def test_a_served_reward_is_asked_by_all_callers_in_fewer_calls_together(small_sd, monkeypatch):
    calls, score = [], jpeg.Jpeg.score

    def counted(self, images, prompts):
        calls.append(len(images))
        return score(self, images, prompts)

    monkeypatch.setattr(jpeg.Jpeg, "score", counted)
    (measured,) = serving.measure(small.run(small_sd), 1, quiet)
    assert measured.name == "serving" and len(measured.figures) == len(measured.limits) == 1
    asked = serving.CALLERS * serving.ASKED
    alone, rest = calls.count(4), [size for size in calls if size != 4]
    assert sum(calls) == 4 * asked * 4  # figure and limit to warm up, and once each
    assert alone >= 2 * asked and rest and max(rest) <= serving.CALLERS * 4


def test_serving_needs_its_extra_and_a_reward_of_single_images(small_sd, monkeypatch):
    run = small.run(small_sd, rewards="[{kind: diversity}]")
    with pytest.raises(BenchError, match="diversity compares a group's images"):
        serving.measure(run, 1, quiet)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (row,) = serving.measure(run, 1, quiet)
    assert "pcpo_ray[serve]" in row.unmeasured and not row.figures
