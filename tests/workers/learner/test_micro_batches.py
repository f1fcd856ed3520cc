"""Micro-batches: the (image, step) pairs that go through the network in one pass."""

import pytest
import torch

from pcpo_ray.workers.learner import micro_batches, mini_batches
from pcpo_ray.workers.packing import pack_trajectory
from pcpo_ray.workers.sampler import Sampler
from tests.support import small
from tests.support.trajectories import CPU, batch, pair, task, trajectory


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


def test_remainders_of_groups_are_passed_together_like_whole_blocks():
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
def test_a_pass_over_several_groups_and_steps_learns_as_block_by_block(request, model, changes):
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
    assert together.loss == pytest.approx(apart.loss, rel=1e-3, abs=1e-7)


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
