"""Which (image, step) pairs go through the network together, and which number of them a learner chooses."""

import math

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from pcpo_ray.data.updates import MicroBatchChoice
from pcpo_ray.workers.learner import micro_batches, mini_batches
from pcpo_ray.workers.learner.micro_batches import OpenedGroup, candidates, gather, measure
from pcpo_ray.workers.packing import pack_trajectory
from pcpo_ray.workers.sampler import Sampler
from tests.support import small
from tests.support.trajectories import batch, pair, task, trajectory

CPU = torch.device("cpu")


def groups(count, **changes):
    return {10 - place: trajectory(**changes) for place in range(count)}


def passes(groups, sampled, size):
    """Of all blocks of the groups, of which `sampled` images go together (None: all), at most `size` pairs at once."""
    shapes = {place: (len(group), len(group.steps)) for place, group in groups.items()}
    images = max(images for images, _ in shapes.values())
    length = min(images, sampled or images, size or images)
    return micro_batches.passes(
        mini_batches.cut_into_blocks(shapes, length), groups, micro_batches.blocks_per_pass(length, size)
    )


def places(found, groups):
    """Of each pass, its blocks' groups and steps."""
    return [[(block.place, int(groups[block.place].steps[block.k])) for block in blocks] for blocks in found]


def test_without_a_size_every_block_is_alone_in_the_groups_order():
    found = passes(groups(2), None, None)
    assert places(found, groups(2)) == [[(10, 0)], [(10, 2)], [(10, 3)], [(9, 0)], [(9, 2)], [(9, 3)]]
    assert [len(block) for blocks in found for block in blocks] == [2] * 6


@pytest.mark.parametrize(
    ("size", "lengths"),
    [(2, [1] * 9), (3, [1] * 9), (4, [2, 2, 2, 2, 1]), (7, [2, 2, 2, 2, 1]), (8, [4, 4, 1]), (100, [8, 1])],
)
def test_blocks_of_two_images_make_up_a_size_and_what_is_left_its_halves(size, lengths):
    found = passes(groups(3), None, size)
    assert [len(blocks) for blocks in found] == lengths
    in_order = [(place, index) for place in (10, 9, 8) for index in (0, 2, 3)]
    assert [pair for blocks in places(found, groups(3)) for pair in blocks] == in_order


def test_groups_that_train_steps_of_their_own_share_a_pass():
    made = groups(4)
    made[9] = trajectory(steps=torch.tensor([1, 4, 5]))
    assert places(passes(made, None, 8), made)[0] == [(10, 0), (10, 2), (10, 3), (9, 1)]


def test_only_groups_whose_texts_have_one_shape_go_together():
    made = groups(2)
    made[9] = trajectory(conditioning={"embeds": torch.zeros(1, 9), "mask": torch.tensor([[True, False]])})
    assert [{place for place, _ in blocks} for blocks in places(passes(made, None, 100), made)] == [
        {10},
        {10},
        {9},
        {9},
    ]


def test_packed_groups_go_together_as_opened_ones_do(small_sd):
    sampler = Sampler(small.run(small_sd), CPU)
    made = {n: sampler.sample(task(position=n))[0] for n in range(3)}
    sent = {n: pack_trajectory(sampler.policy, task(position=n), one) for n, one in made.items()}
    assert places(passes(sent, None, 8), sent) == places(passes(made, None, 8), made) != []


@pytest.mark.parametrize(
    ("sampled", "size", "rows"),
    [
        (None, None, [(0, 2)]),
        (1, None, [(0, 1), (1, 2)]),
        (1, 8, [(0, 1), (1, 2)]),
        (None, 1, [(0, 1), (1, 2)]),
        (8, 8, [(0, 2)]),
    ],
)
def test_a_block_is_what_the_sampler_had_at_once_or_less(sampled, size, rows):
    found = [block for blocks in passes(groups(1), sampled, size) for block in blocks]
    assert sorted({(block.rows.start, block.rows.stop) for block in found}) == rows


def test_what_is_left_of_a_group_goes_with_what_is_left_of_others_as_often_as_whole_blocks_do():
    names = ("latents", "predictions", "noises")
    made = {
        n: trajectory(**{name: torch.zeros(4, 3, 4, 5) for name in names}, log_probs=torch.zeros(4, 3)) for n in (0, 1)
    }
    assert [[len(block) for block in blocks] for blocks in passes(made, 3, 3)] == [*[[3]] * 3, *[[1]] * 3] * 2
    found = [[(block.place, len(block)) for block in blocks] for blocks in passes(made, 3, 6)]
    whole, left = ([blocks for blocks in found if blocks[0][1] == n] for n in (3, 1))
    assert whole == [[(0, 3), (0, 3)], [(0, 3), (1, 3)], [(1, 3), (1, 3)]]
    assert left == [[(0, 1), (0, 1)], [(0, 1), (1, 1)], [(1, 1), (1, 1)]]
    assert [blocks[-1][0] for blocks in found] == sorted(blocks[-1][0] for blocks in found)  # none is opened twice


def test_gathered_pairs_have_each_block_s_own_step_and_text_and_are_taken_apart_again():
    texts = [{"embeds": torch.full((1, 7), float(n)), "mask": torch.full((1, 2), float(n))} for n in (0, 1)]
    made = {n: trajectory(latents=torch.rand(2, 3, 4, 5) + n, conditioning=texts[n]) for n in (0, 1)}
    (blocks, *_) = passes(made, 1, 8)
    blocks = [*blocks[1:3], *passes({1: made[1]}, 1, 8)[0][:2]]
    indices = [int(made[block.place].steps[block.k]) for block in blocks]
    pairs = gather(blocks, indices, {n: OpenedGroup(trajectory=one) for n, one in made.items()}, torch.tensor(indices))
    expected = [made[block.place].latents[block.rows, block.k] for block in blocks]
    assert torch.equal(pairs.latents, torch.cat(expected))
    assert pairs.conditioning["embeds"][:, 0].tolist() == [0.0, 0.0, 1.0, 1.0]
    for number, (one, latents) in enumerate(zip(pairs.apart(), expected, strict=True)):
        assert torch.equal(one.latents, latents) and one.steps.tolist() == one.indices == [indices[number]]
        assert one.blocks == [blocks[number]] and one.conditioning["mask"].shape == (1, 2)


@pytest.mark.parametrize(
    ("sampled", "pairs", "sizes"),
    [(16, 512, [16, 32, 64, 128]), (16, 100, [16, 32, 64]), (4, 4, [4]), (3, 12, [3, 6, 12])],
)
def test_doubles_of_the_sampler_s_number_are_tried_as_far_as_there_are_pairs(sampled, pairs, sizes):
    assert candidates(sampled, pairs) == sizes


def test_numbers_with_other_bits_or_without_room_are_no_choice():
    learned = []

    def learn(size):
        learned.append(size)
        if size == 64:
            raise torch.OutOfMemoryError

    assert measure([8, 16, 32], lambda size: size < 32, learn, CPU).isfinite().tolist() == [True, True, False]
    assert measure([8, 16, 32], lambda size: size > 16, learn, CPU).isfinite().tolist() == [True, False, False]
    assert learned == [8, 8, 16, 16, 8, 8]
    assert measure([32, 64, 128], lambda size: True, learn, CPU).isfinite().tolist() == [True, False, False]


def test_nothing_is_tried_for_longer_than_a_minute(monkeypatch):
    monkeypatch.setattr(micro_batches, "LONGEST", -1.0)
    assert measure([8, 16], lambda size: True, lambda size: None, CPU).isfinite().tolist() == [True, False]


def test_the_fastest_is_found_and_what_was_no_choice_has_no_time():
    assert MicroBatchChoice.of([8, 16, 32], [0.3, 0.1, math.inf]) == MicroBatchChoice(
        size=16, seconds={8: 0.3, 16: 0.1, 32: None}
    )
    assert MicroBatchChoice.of([8, 16], [math.inf, math.inf]).size == 8


SETTINGS = [
    {},
    {"objective__kl": 0.1},
    {"objective__log_ratio": "replay", "credit__kind": "native"},
    {"objective__clip_scale": "weight", "credit__kind": "native", "objective__kind": "clipped_ratio"},
    {"sampling__batch": 3},
    {"sampling__batch": 2, "sampling__subset": "{kind: share, share: 0.5}"},
    {"sampling__guidance_scale": 3.0, "sampling__subset": "{kind: share, share: 0.5}"},
]


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        *((model, changes) for model in ("small_sd", "small_flux") for changes in SETTINGS),
        ("small_sd", {"objective__kl": 0.1, "credit__kind": "interpolate"}),
    ],
)
def test_pairs_of_several_groups_and_steps_at_once_are_learned_as_each_block_alone(request, model, changes):
    folder = request.getfixturevalue(model)
    sampler, learner = pair(folder, **changes)
    _, other = pair(folder, **changes, optimizer__micro_batch=16)
    made = batch(sampler, learner, count=5)
    apart, together = learner.update(1, made), other.update(1, made)
    assert together.gradient_norm == pytest.approx(apart.gradient_norm, rel=1e-4)
    assert together.loss == pytest.approx(apart.loss, rel=1e-4, abs=1e-7)
    table = apart.diagnostics["per_timestep"]
    assert together.diagnostics["per_timestep"]["gradient_share"] == pytest.approx(table["gradient_share"], rel=1e-3)
    assert together.micro_batch is apart.micro_batch is None


@pytest.mark.parametrize("updates", [1, 2])
def test_old_and_fresh_groups_that_share_a_pass_are_learned_as_each_alone(small_sd, updates):
    changes = {"objective__correction": 2, "optimizer__minibatches": updates, "optimizer__max_gradient_norm": 1e9}
    sampler, learner = pair(small_sd, **changes)
    _, other = pair(small_sd, **changes, optimizer__micro_batch=64)
    old = batch(sampler, learner, count=4)
    for one in (learner, other):
        one.update(1, old)
    fresh = batch(sampler, learner, count=4)
    mixed = [group for both in zip(old[:2], fresh[:2], strict=True) for group in both]
    assert [version for version, *_ in mixed] == [0, 1, 0, 1]
    apart, together = learner.update(2, mixed), other.update(2, mixed)
    assert together.gradient_norm == pytest.approx(apart.gradient_norm, rel=1e-3)
    assert together.loss == pytest.approx(apart.loss, rel=1e-3)


def test_fresh_groups_are_not_weighed_however_low_the_limit(small_sd):
    sampler, learner = pair(small_sd, optimizer__max_gradient_norm=1e9)
    made = batch(sampler, learner)
    _, limited = pair(small_sd, optimizer__max_gradient_norm=1e9, objective__correction=0.5)
    assert limited.update(1, made).gradient_norm == learner.update(1, made).gradient_norm
    assert limited.weights().manifest.checksum == learner.weights().manifest.checksum


def test_no_pass_is_short_where_each_group_trains_steps_of_its_own(small_sd, monkeypatch):
    changes = {"sampling__subset": "{kind: share, share: 0.5}", "sampling__steps": 8, "optimizer__micro_batch": 16}
    sampler, learner = pair(small_sd, **changes)
    made = batch(sampler, learner, count=4)
    assert len({tuple(trajectory.steps.tolist()) for _, trajectory, _ in made}) > 1
    passed, predict = [], learner.policy.predict

    def predicted(latents, *rest):
        passed.append(len(latents))
        return predict(latents, *rest)

    monkeypatch.setattr(learner.policy, "predict", predicted)
    learner.update(1, made)
    assert passed == [16] * 4  # four groups of four images at four steps


@pytest.mark.parametrize(("size", "most"), [(4, 1), (8, 1), (32, 2)])
def test_only_the_groups_of_one_pass_lie_open(small_sd, monkeypatch, size, most):
    sampler, learner = pair(small_sd, optimizer__micro_batch=size)
    made = batch(sampler, learner, count=4)
    opened, lying, open_one, accumulate = [], [], learner._open, learner._accumulate

    def opening(group, rows):
        one = open_one(group, rows)
        opened.append(StorageWeakRef(one.trajectory.latents.untyped_storage()))
        return one

    monkeypatch.setattr(learner, "_open", opening)

    def accumulating(*arguments, **more):
        lying.append(sum(not one.expired() for one in opened))
        return accumulate(*arguments, **more)

    monkeypatch.setattr(learner, "_accumulate", accumulating)
    sent = [
        (0, pack_trajectory(sampler.policy, task(position=n), one), values) for n, (_, one, values) in enumerate(made)
    ]
    del made
    learner.update(1, sent)
    assert len(opened) == 4 and max(lying) == most


def test_the_learner_tries_what_it_has_and_keeps_to_what_it_found(small_flux, monkeypatch):
    sampler, learner = pair(small_flux, optimizer__micro_batch="auto", rollout__prompts=5)
    seen = []

    def measured(sizes, same, learn, device):
        for size in sizes:
            same(size)
            learn(size)
        seen.append(sizes)
        return torch.tensor([0.3, 0.1, 0.2, 0.4])

    monkeypatch.setattr(micro_batches, "measure", measured)
    made = batch(sampler, learner, count=5)
    first = learner.update(1, made)
    assert first.micro_batch is not None and first.micro_batch.size == learner.micro_batch == 8
    assert learner.update(2, made).micro_batch is None
    assert seen == [[4, 8, 16, 32]]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_most_pairs_that_auto_may_choose_predict_the_samplers_bits(small_flux, monkeypatch, dtype):
    sampler, learner = pair(small_flux, optimizer__micro_batch="auto", model__dtype=dtype)

    def measured(sizes, same, learn, device):
        return torch.tensor([1 / size if same(size) else math.inf for size in sizes])

    monkeypatch.setattr(micro_batches, "measure", measured)
    assert learner.update(1, batch(sampler, learner, count=3)).diagnostics["overall"]["max_log_ratio"] == 0.0
    assert learner.micro_batch is not None


def test_auto_is_not_misled_by_an_adapter_that_is_still_zero(small_sd, monkeypatch):
    """Half of it is, at first: so what it does to the bits of a larger batch is only seen later."""
    sampler, learner = pair(small_sd, optimizer__micro_batch="auto")
    zero = {name: p for name, p in learner.parameters.items() if not p.any()}
    assert 0 < len(zero) < len(learner.parameters)
    predict = learner.policy.predict

    def predicted(latents, *rest):
        otherwise = sum(p.detach().square().sum() for p in zero.values())
        return predict(latents, *rest) * (1 + otherwise * (len(latents) > 4))

    monkeypatch.setattr(learner.policy, "predict", predicted)
    learner.update(1, batch(sampler, learner, count=3))
    assert learner.micro_batch == 4


def test_trying_leaves_every_weight_as_it_was(small_sd):
    sampler, learner = pair(small_sd, optimizer__micro_batch="auto")
    before = {name: p.detach().clone() for name, p in learner.parameters.items()}
    made = batch(sampler, learner, count=3)
    blocks = learner._blocks(made, [0, 1, 2])
    learner._find_micro_batch(made, blocks, blocks)
    assert learner.micro_batch is not None
    assert all(torch.equal(p, before[name]) for name, p in learner.parameters.items())
