"""The pair loader: pairs keep what the sampler had, and few groups are unpacked at once."""

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from pcpo_ray.workers.learner import mini_batches
from pcpo_ray.workers.learner.pair_loader import OpenedGroup, gather
from pcpo_ray.workers.packing import pack_trajectory
from tests.support.trajectories import batch, pair, task, trajectory


def test_gathered_pairs_keep_each_blocks_step_and_text_and_come_apart():
    texts = [{"embeds": torch.full((1, 7), float(n)), "mask": torch.full((1, 2), float(n))} for n in (0, 1)]
    made = {n: trajectory(latents=torch.rand(2, 3, 4, 5) + n, conditioning=texts[n]) for n in (0, 1)}
    cut = [mini_batches.cut_into_blocks({place: (2, 3)}, 1) for place in made]
    blocks = [*cut[0][1:3], *cut[1][:2]]
    indices = [int(made[block.place].steps[block.k]) for block in blocks]
    pairs = gather(blocks, indices, {n: OpenedGroup(trajectory=one) for n, one in made.items()}, torch.tensor(indices))
    expected = [made[block.place].latents[block.rows, block.k] for block in blocks]
    assert torch.equal(pairs.latents, torch.cat(expected))
    assert pairs.conditioning["embeds"][:, 0].tolist() == [0.0, 0.0, 1.0, 1.0]
    for number, (one, latents) in enumerate(zip(pairs.apart(), expected, strict=True)):
        assert torch.equal(one.latents, latents) and one.steps.tolist() == one.indices == [indices[number]]
        assert one.blocks == [blocks[number]] and one.conditioning["mask"].shape == (1, 2)


@pytest.mark.parametrize(("size", "most"), [(4, 1), (8, 1), (32, 2)])
def test_only_the_groups_of_one_pass_lie_open(small_sd, monkeypatch, size, most):
    sampler, learner = pair(small_sd, optimizer__micro_batch=size)
    made = batch(sampler, learner, count=4)
    opened, lying, open_one, of_pass = [], [], learner.loader.open, learner.loss.of_pass

    def opening(group, rows):
        one = open_one(group, rows)
        opened.append(StorageWeakRef(one.trajectory.latents.untyped_storage()))
        return one

    monkeypatch.setattr(learner.loader, "open", opening)

    def counted(*arguments, **more):
        lying.append(sum(not one.expired() for one in opened))
        return of_pass(*arguments, **more)

    monkeypatch.setattr(learner.loss, "of_pass", counted)
    sent = [
        (0, pack_trajectory(sampler.policy, task(position=n), one), values) for n, (_, one, values) in enumerate(made)
    ]
    del made
    learner.update(1, sent)
    assert len(opened) == 4 and max(lying) == most


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


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_network_gets_contiguous_latents_of_its_own_dtype(small_flux, dtype):
    sampler, learner = pair(small_flux, model__dtype=dtype, sampling__storage=dtype)
    assert learner.update(1, batch(sampler, learner)).diagnostics["overall"]["max_log_ratio"] == 0.0
