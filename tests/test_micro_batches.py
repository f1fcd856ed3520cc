"""Which images go through the network together, and which number of them a learner chooses."""

import math

import pytest
import torch

from pcpo_ray import micro_batches
from pcpo_ray.micro_batches import Found, candidates, join, measure, parts, split
from pcpo_ray.packed import pack
from pcpo_ray.sampler import Sampler
from tests import small
from tests.test_learner import batch, pair
from tests.test_sampler import task
from tests.test_trajectory import trajectory

CPU = torch.device("cpu")


def groups(*versions, **changes):
    return {10 - place: (version, trajectory(**changes)) for place, version in enumerate(versions)}


def test_without_a_size_every_group_is_alone_in_its_order():
    assert parts(groups(1, 1, 2), None) == [[10], [9], [8]]


@pytest.mark.parametrize(
    ("size", "found"),
    [
        (1, [[10], [9], [8], [7], [6]]),
        (2, [[10], [9], [8], [7], [6]]),
        (4, [[10, 9], [8, 7], [6]]),
        (8, [[10, 9, 8, 7], [6]]),
        (7, [[10, 9], [8, 7], [6]]),
        (100, [[10, 9, 8, 7], [6]]),
    ],
)
def test_groups_of_two_images_make_up_a_size_and_what_is_left_its_halves(size, found):
    assert parts(groups(1, 1, 1, 1, 1), size) == found


def test_only_groups_of_one_version_and_the_same_steps_and_texts_go_together():
    made = groups(1, 2, 1)
    assert parts(made, 100) == [[10, 8], [9]]
    made[8] = (1, trajectory(steps=torch.tensor([0, 1, 3])))
    assert parts(made, 100) == [[10], [9], [8]]
    made[8] = (1, trajectory(conditioning={"embeds": torch.zeros(1, 9), "mask": torch.tensor([[True, False]])}))
    assert parts(made, 100) == [[10], [9], [8]]


def test_packed_groups_go_together_as_opened_ones_do(small_sd):
    sampler = Sampler(small.run(small_sd), CPU)
    made = {n: (0, pack(sampler.policy, task(position=n), sampler.sample(task(position=n))[0])) for n in range(3)}
    assert parts(made, 8) == [[0, 1], [2]]


def test_joined_groups_are_split_with_each_image_s_own_text():
    first, second = trajectory(), trajectory(conditioning={"embeds": torch.ones(1, 7), "mask": torch.zeros(1, 2)})
    first = trajectory(conditioning={"embeds": torch.zeros(1, 7), "mask": torch.zeros(1, 2)})
    joined = join([first, second])
    assert len(joined) == 4 and torch.equal(joined.latents[2:], second.latents)
    pieces = list(split(joined, 3))
    assert [(rows.start, rows.stop) for rows, _ in pieces] == [(0, 3), (3, 4)]
    assert [texts["embeds"][:, 0].tolist() for _, texts in pieces] == [[0.0, 0.0, 1.0], [1.0]]
    assert join([first]) is first


@pytest.mark.parametrize(
    ("sampled", "images", "count", "sizes"),
    [
        (16, 16, 8, [16, 32, 64, 128]),
        (16, 16, 3, [16, 32]),
        (4, 16, 1, [4, 8, 16]),
        (1, 12, 4, [1, 2, 4]),
        (8, 24, 9, [8]),
        (3, 4, 9, [3]),
    ],
)
def test_only_what_is_made_up_without_a_remainder_is_tried(sampled, images, count, sizes):
    assert candidates(sampled, images, count) == sizes


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
    assert Found.of([8, 16, 32], [0.3, 0.1, math.inf]) == Found(size=16, seconds={8: 0.3, 16: 0.1, 32: None})
    assert Found.of([8, 16], [math.inf, math.inf]).size == 8


@pytest.mark.parametrize("changes", [{}, {"objective__kl": 0.1}, {"objective__correction": 2, "optimizer__updates": 2}])
def test_images_of_several_groups_at_once_are_learned_as_each_group_alone(small_sd, changes):
    sampler, learner = pair(small_sd, **changes)
    _, other = pair(small_sd, **changes, optimizer__micro_batch=8)
    made = batch(sampler, learner, count=5)
    apart, together = learner.update(1, made), other.update(1, made)
    assert together.gradient_norm == pytest.approx(apart.gradient_norm, rel=1e-4)
    assert together.loss == pytest.approx(apart.loss, rel=1e-4)
    table = apart.diagnostics["per_timestep"]
    assert together.diagnostics["per_timestep"]["gradient_share"] == pytest.approx(table["gradient_share"], rel=1e-3)
    assert together.micro_batch is apart.micro_batch is None


def test_the_learner_tries_what_it_has_and_keeps_to_what_it_found(small_flux, monkeypatch):
    sampler, learner = pair(small_flux, optimizer__micro_batch="auto", rollout__prompts=5)
    seen = []

    def measured(sizes, same, learn, device):
        for size in sizes:
            same(size)
            learn(size)
        seen.append(sizes)
        return torch.tensor([0.3, 0.1, 0.2])

    monkeypatch.setattr(micro_batches, "measure", measured)
    made = batch(sampler, learner, count=5)
    first = learner.update(1, made)
    assert first.micro_batch is not None and first.micro_batch.size == learner.micro_batch == 8
    assert learner.update(2, made).micro_batch is None
    assert seen == [[4, 8, 16]]


def test_what_auto_chooses_predicts_the_sampler_s_bits(small_flux):
    sampler, learner = pair(small_flux, optimizer__micro_batch="auto")
    assert learner.update(1, batch(sampler, learner, count=3)).diagnostics["overall"]["max_log_ratio"] == 0.0
    assert learner.micro_batch in (4, 8)
