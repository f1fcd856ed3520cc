"""Weights arrive as they were sent, or not at all."""

import dataclasses

import pytest
import torch
from torch import nn

from pcpo_ray.data import weights
from pcpo_ray.errors import WeightsError
from tests.support.checksums import checksum


def parameters(**changes):
    made = {
        "a": torch.randn(3, 2),
        "b": torch.randn(5).to(torch.bfloat16),
        "c": torch.tensor([1e-8, -0.0, 3.0]),
        **changes,
    }
    return {name: nn.Parameter(value) for name, value in made.items() if value is not None}


def test_every_dtype_arrives_to_the_bit_with_the_same_checksum():
    sent, here = parameters(), parameters()
    packed = weights.pack(4, sent)
    assert weights.apply(packed, here) == packed.manifest.checksum == checksum(sent)
    assert all(torch.equal(here[name], value) for name, value in sent.items())


def test_a_parameter_that_lies_otherwise_in_memory_gets_its_values_too():
    sent, here = parameters(), parameters(a=torch.zeros(2, 3).T)
    assert not here["a"].is_contiguous()
    weights.apply(weights.pack(4, sent), here)
    assert all(torch.equal(here[name], value) for name, value in sent.items())


@pytest.mark.parametrize(("bucket", "sizes"), [(1000, (46,)), (24, (24, 22)), (30, (24, 22)), (11, (24, 10, 12))])
def test_buckets_hold_whole_parameters_and_no_more_than_they_may(bucket, sizes):
    sent, here = parameters(), parameters()
    packed = weights.pack(4, sent, bucket=bucket)
    assert packed.manifest.sizes == sizes == tuple(found.nbytes for found in packed.buckets)
    weights.apply(packed, here)
    assert all(torch.equal(here[name], value) for name, value in sent.items())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"b": None}, "1 unknown here.*'b'"),
        ({"d": torch.ones(2)}, "1 not sent.*'d'"),
        ({"a": torch.ones(2, 3)}, "a: sent"),
    ],
)
def test_other_names_or_shapes_are_refused_before_anything_changes(changes, words):
    here = parameters(**changes)
    before = checksum(here)
    with pytest.raises(WeightsError, match=words):
        weights.apply(weights.pack(1, parameters()), here)
    assert checksum(here) == before


def test_a_buffer_changed_on_the_way_is_found_out():
    packed = weights.pack(1, parameters())
    damaged = packed.buckets[0].copy()
    damaged[3] ^= 1
    with pytest.raises(WeightsError, match="checksum"):
        weights.apply(dataclasses.replace(packed, buckets=(damaged,)), parameters())


def test_a_read_only_buffer_as_an_object_store_gives_is_taken():
    packed = weights.pack(1, parameters())
    packed.buckets[0].setflags(write=False)
    here = parameters()
    weights.apply(packed, here)
    with torch.no_grad():
        here["a"].add_(1)  # what was loaded can be trained on, and what was sent stays as it was
    assert weights.apply(packed, parameters()) == packed.manifest.checksum


def test_an_adapter_that_binds_nothing_is_refused():
    with pytest.raises(WeightsError, match="binds no module"):
        weights.pack(0, {})


@pytest.mark.parametrize("cut", [slice(0, -5), slice(0, 0), slice(4, None)])
def test_bytes_that_are_missing_are_found_out_before_anything_changes(cut):
    packed, here = weights.pack(7, parameters()), parameters()
    before = checksum(here)
    with pytest.raises(WeightsError, match=r"version 7 arrived in buckets of \[\d+\] bytes; expected \[46\]"):
        weights.apply(dataclasses.replace(packed, buckets=(packed.buckets[0][cut],)), here)
    assert checksum(here) == before


def test_the_same_values_in_another_dtype_are_refused():
    here = parameters(b=torch.randn(5))
    with pytest.raises(WeightsError, match=r"b: sent \('bfloat16', \(5,\)\), here \('float32', \(5,\)\)"):
        weights.apply(weights.pack(1, parameters()), here)


def test_what_was_packed_does_not_follow_the_learner():
    sent = parameters()
    packed = weights.pack(1, sent)
    with torch.no_grad():
        sent["a"].add_(1)
    here = parameters()
    weights.apply(packed, here)
    assert torch.equal(here["a"] + 1, sent["a"])


def test_the_checksum_depends_on_names_and_bytes_but_not_on_order():
    one = parameters()
    assert checksum(dict(reversed(one.items()))) == checksum(one)
    swapped = {"a": one["a"], "b": one["b"], "d": one["c"]}
    assert checksum(swapped) != checksum(one)
    with torch.no_grad():
        one["c"][1] = 0.0  # it was -0.0, which is equal to it
    assert checksum(swapped) != checksum(one)


def test_the_buffers_of_old_weights_are_reused_if_they_fit():
    old, new, larger = parameters(), parameters(), parameters(d=torch.randn(4))
    before = weights.pack(1, old)
    held = before.buckets[0]
    packed = weights.pack(2, new, over=before)
    assert packed.buckets[0] is held
    assert packed.manifest == weights.pack(2, new).manifest
    here = parameters()
    weights.apply(packed, here)
    assert all(torch.equal(here[name], value) for name, value in new.items())
    assert weights.pack(3, larger, over=packed).buckets[0] is not held


def test_a_parameter_of_several_pieces_arrives_whole():
    sent, here = parameters(a=torch.randn(weights.PIECE // 2 + 3)), parameters(a=torch.zeros(weights.PIECE // 2 + 3))
    assert weights.apply(weights.pack(1, sent), here) == checksum(sent)
    assert torch.equal(here["a"], sent["a"])
