"""Groups of several sizes in one run: each is sampled and trained as in a run that has its size only."""

import dataclasses

import pytest
import torch

from pcpo_ray.data.prompts import PromptSource
from pcpo_ray.data.tasks import evaluation_tasks
from pcpo_ray.workers.learner.learner import Learner
from pcpo_ray.workers.packing import pack_trajectory, unpack_trajectory
from pcpo_ray.workers.sampler import Sampler
from pcpo_ray.workers.scorer import Scorer
from tests.support import small
from tests.support.trajectories import ADVANTAGES, same_bits, task

CPU = torch.device("cpu")
LARGE = (32, 16)
MODELS = ("small_sd", "small_sdxl", "small_sd3", "small_flux_dev")


def sized(asked, size=LARGE):
    return dataclasses.replace(asked, prompt=dataclasses.replace(asked.prompt, size=size))


def samplers(folder, **changes):
    """A sampler that is asked for a size, and one whose config has it."""
    large = dict(zip(("sampling__height", "sampling__width"), LARGE, strict=True))
    return Sampler(small.run(folder, **changes), CPU), Sampler(small.run(folder, **large, **changes), CPU)


@pytest.mark.parametrize("model", MODELS)
def test_a_group_has_the_bits_of_a_run_in_which_all_have_its_size(model, request):
    changes = {"evaluation__sampling": "{steps: 3}", "sampling__subset": "{kind: window, size: 2}"}
    mixed, large = samplers(request.getfixturevalue(model), **changes)
    before, _ = mixed.sample(task())
    for asked in (task(position=1), task(purpose="evaluate")):
        one, images = mixed.sample(sized(asked))
        other, expected = large.sample(asked)
        assert images.shape[1:3] == LARGE and (images == expected).all()
        assert asked.purpose == "evaluate" or same_bits(one, other)
    again, _ = mixed.sample(task())
    assert same_bits(before, again) and before.size is None


def gradients(learner, batch):
    """The gradient of the first optimizer step of an update, and what the update returns."""
    kept, step = {}, learner._step

    def keeping():
        kept.update({name: p.grad.clone() for name, p in learner.masters.values.items() if p.grad is not None})
        return step()

    learner._step = keeping
    return kept, learner.update(1, batch)


def groups(sampler, positions, size=None):
    return [(0, sampler.sample(sized(task(position=n), size))[0], ADVANTAGES) for n in positions]


@pytest.mark.parametrize("model", ["small_sd", "small_flux_dev"])
def test_a_gradient_is_the_mean_over_pairs_of_every_size(model, request):
    changes = {"rollout__prompts": 4, "objective__clip_scale": "weight", "optimizer__max_gradient_norm": 1e6}
    mixed, large = samplers(request.getfixturevalue(model), **changes)
    small_ones, large_ones = groups(mixed, (0, 2)), groups(mixed, (1, 3), LARGE)
    both = [group for pair in zip(small_ones, large_ones, strict=True) for group in pair]
    halves = [
        gradients(Learner(sampler.run, CPU), held)
        for sampler, held in ((mixed, small_ones), (large, groups(large, (1, 3))))
    ]
    for size in ("null", 4, 16):
        run = small.run(request.getfixturevalue(model), **changes, optimizer__micro_batch=size)
        found, update = gradients(Learner(run, CPU), both)
        # several blocks a pass may round otherwise, at one size as at several
        assert update.first_log_ratio <= (1e-6 if size == 16 else 0.0)
        assert update.loss == pytest.approx((halves[0][1].loss + halves[1][1].loss) / 2, abs=1e-7)
        for name, value in found.items():
            torch.testing.assert_close(value, (halves[0][0][name] + halves[1][0][name]) / 2, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("log_ratio", ["decomposed", "replay"])
def test_a_second_epoch_and_the_reference_are_taken_at_each_size(small_sd, log_ratio):
    changes = {"objective__kl": 0.1} if log_ratio == "decomposed" else {"credit__kind": "native"}
    run = small.run(small_sd, objective__log_ratio=log_ratio, optimizer__epochs=2, optimizer__micro_batch=8, **changes)
    sampler, learner = Sampler(run, CPU), Learner(run, CPU)
    update = learner.update(1, [*groups(sampler, (0,)), *groups(sampler, (1,), LARGE)])
    assert abs(update.first_log_ratio) < 1e-3 and update.skipped == 0 and update.moved_fraction > 0


@pytest.mark.parametrize("model", ["small_sd", "small_flux_dev"])
def test_a_packed_group_is_unpacked_at_its_size(model, request):
    sampler = Sampler(small.run(request.getfixturevalue(model)), CPU)
    asked = sized(task())
    made, _ = sampler.sample(asked)
    packed = pack_trajectory(sampler.policy, asked, made)
    opened = unpack_trajectory(sampler.policy, packed)
    assert same_bits(opened, made) and opened.size == made.size == packed.size == LARGE


def test_prompts_are_evaluated_together_with_those_of_their_size(small_sd):
    run = small.run(small_sd, evaluation__count=6)
    sizes = [None, None, LARGE, LARGE, LARGE, None]
    source = PromptSource([f"thing {n}" for n in range(6)], seed=0, origin="x", sizes=sizes)
    ordered = source.distinct(6)
    tasks = evaluation_tasks(run, source, 0)
    assert [prompt for one in tasks for prompt in one.prompts] == ordered
    assert [one.position for one in tasks] == [ordered.index(one.prompt) for one in tasks]
    assert all(len({prompt.size for prompt in one.prompts}) == 1 and len(one.prompts) <= 2 for one in tasks)
    plain = evaluation_tasks(run, PromptSource(source.texts, seed=0, origin="x"), 0)
    assert [len(one.prompts) for one in plain] == [2, 2, 2]
    sampler, scorer = Sampler(run, CPU), Scorer(run, CPU)
    for one in tasks[:3]:
        _, images = sampler.sample(one)
        scores, failures, _ = scorer.score(one, images)
        assert images.shape[1:3] == (one.prompt.size or (16, 16)) and not failures
        assert len(scores["jpeg_compressibility"]) == len(images)
