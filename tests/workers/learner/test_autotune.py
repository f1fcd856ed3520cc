"""Autotuning: which micro-batches are tried, which one is chosen, and what it leaves as it was."""

import math

import pytest
import torch

from pcpo_ray.data.updates import MicroBatchChoice
from pcpo_ray.workers.learner import autotune
from pcpo_ray.workers.learner.autotune import candidates, measure
from tests.support.trajectories import CPU, batch, pair


@pytest.mark.parametrize(
    ("sampled", "pairs", "sizes"),
    [(16, 512, [16, 32, 64, 128]), (16, 100, [16, 32, 64]), (4, 4, [4]), (3, 12, [3, 6, 12])],
)
def test_candidates_are_doubles_of_the_samplers_number_up_to_all_pairs(sampled, pairs, sizes):
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
    monkeypatch.setattr(autotune, "LONGEST", -1.0)
    assert measure([8, 16], lambda size: True, lambda size: None, CPU).isfinite().tolist() == [True, False]


def test_the_fastest_is_found_and_what_was_no_choice_has_no_time():
    assert MicroBatchChoice.of([8, 16, 32], [0.3, 0.1, math.inf]) == MicroBatchChoice(
        size=16, seconds={8: 0.3, 16: 0.1, 32: None}
    )
    assert MicroBatchChoice.of([8, 16], [math.inf, math.inf]).size == 8


def test_the_learner_tries_what_it_has_and_keeps_to_what_it_found(small_flux, monkeypatch):
    sampler, learner = pair(small_flux, optimizer__micro_batch="auto", rollout__prompts=5)
    seen = []

    def measured(sizes, same, learn, device):
        for size in sizes:
            same(size)
            learn(size)
        seen.append(sizes)
        return torch.tensor([0.3, 0.1, 0.2, 0.4])

    monkeypatch.setattr(autotune, "measure", measured)
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

    monkeypatch.setattr(autotune, "measure", measured)
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
    blocks = learner.loader.blocks(made, [0, 1, 2])
    learner.autotune(made, blocks, blocks)
    assert learner.micro_batch is not None
    assert all(torch.equal(p, before[name]) for name, p in learner.parameters.items())
