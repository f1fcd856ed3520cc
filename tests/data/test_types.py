"""What travels between stages arrives as it left, and what does not fit together is refused."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from pcpo_ray.data.seeds import generator, seed_of
from pcpo_ray.data.tensors import from_numpy, in_one_piece, of_rows, to_numpy
from pcpo_ray.data.types import Handle, Prompt, Rollout, Scored, Task
from pcpo_ray.errors import TrainingError
from tests.support.trajectories import trajectory


def scored(**scores):
    prompt = Prompt(index=0, text="x")
    task = Task(step=1, position=0, prompt=prompt, images=2, version=0, purpose="train")
    images = Handle(reference=None)
    rollout = Rollout(task=task, trajectory=None, images=images, bytes=0, checksum="", seconds=0.0, worker="w")
    return Scored(rollout=rollout, scores=scores, failures={}, seconds=0.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": torch.tensor([0, 1])}, r"steps \(2,\) and latents \(2, 3, 4, 5\)"),
        ({"steps": torch.zeros(3, 1)}, r"steps \(3, 1\)"),
        ({"latents": torch.zeros(2, 3)}, r"latents \(2, 3\); expected"),
        ({"predictions": torch.zeros(2, 3, 4)}, r"predictions \(2, 3, 4\); expected \(2, 3, 4, 5\)"),
        ({"noises": torch.zeros(1, 3, 4, 5)}, r"noises \(1, 3, 4, 5\)"),
        ({"log_probs": torch.zeros(3, 2)}, r"log_probs \(3, 2\); expected \(2, 3\)"),
    ],
)
def test_tensors_that_do_not_fit_together_are_named_with_both_shapes(changes, words):
    with pytest.raises(TrainingError, match=words):
        trajectory(**changes)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool]
)
def test_a_tensor_of_any_dtype_comes_back_from_numpy_to_the_bit(dtype):
    sent = torch.tensor([[0.1, -0.0, 3e-5], [1.0, 2.5, -7.0]]).to(dtype).T
    back = from_numpy(to_numpy(sent))
    assert back.dtype == dtype
    assert torch.equal(back, sent)


def test_a_read_only_array_comes_back_as_a_tensor_of_its_own():
    name, array = to_numpy(torch.zeros(3))
    array.setflags(write=False)
    back = from_numpy((name, array))
    back.add_(1)
    assert array.tolist() == [0.0] * 3


def test_its_length_is_its_images_and_moving_takes_the_conditioning_along():
    moved = trajectory().to(torch.device("meta"))
    assert len(moved) == 2
    assert {moved.latents.device.type, moved.steps.device.type, moved.conditioning["mask"].device.type} == {"meta"}


def test_a_seed_depends_on_every_part_on_its_kind_and_on_where_it_stands():
    parts: list[tuple[int | str, ...]] = [(), (0,), (1,), ("1",), (1, 2), (2, 1), (12,), (1, "2"), ("1, 2",), (0, 0)]
    assert all(seed_of(*one) != seed_of(*other) for one, other in itertools.combinations(parts, 2))
    assert all(0 <= seed_of(*part) < 2**63 for part in parts)


def test_a_seed_and_its_noise_never_change_between_versions():
    assert seed_of(0, "prompts", 1) == 4450546380323903027
    assert torch.randn(2, generator=generator(0, "prompts", 1)).tolist() == pytest.approx([0.293302, -1.953752])


def test_a_task_is_a_value_that_can_be_looked_up():
    one = scored(a=[1.0, 2.0]).rollout.task
    assert {one: "found"}[dataclasses.replace(one)] == "found"
    assert dataclasses.replace(one, version=1) != one


def test_the_total_is_the_weighted_sum_of_the_rewards_named():
    group = scored(a=[1.0, 2.0], b=[10.0, 20.0], watched=[float("nan"), 5.0])
    assert group.total({"a": 2.0, "b": -0.5}).tolist() == [-3.0, -6.0]


def test_one_missing_score_makes_the_total_and_the_group_missing():
    group = scored(a=[1.0, 2.0], b=[float("nan"), 20.0])
    total = group.total({"a": 1.0, "b": 1.0})
    assert np.isnan(total[0])
    assert total[1] == 22.0
    assert group.missing
    assert not scored(a=[0.0, 0.0]).missing


@pytest.mark.parametrize(("texts", "whose"), [(1, [0, 0, 0]), (2, [0, 0, 1]), (6, [1, 2, 3])])
def test_images_have_their_own_texts_rows_each_in_memory_of_its_own(texts, whose):
    conditioning = {"embeds": torch.randn(texts, 5, 3), "pooled": torch.randn(texts, 3)}
    found = in_one_piece(of_rows(conditioning, slice(1, 4), 6))
    for name, rows in found.items():
        assert torch.equal(rows, conditioning[name][whose])
        assert rows.is_contiguous() and rows.untyped_storage().nbytes() == rows.nbytes
