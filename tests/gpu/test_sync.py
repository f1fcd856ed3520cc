"""Weights sent between GPUs: a member that is lost costs the sender the deadline, and not its process."""

import multiprocessing
import os
import time

import pytest
import torch

from pcpo_ray.workers.learner import distributed

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GPU = torch.device("cuda")
BYTES = 1 << 20


def lives_and_sends():
    """This process, and its GPU, are as they were: a group of one sends again."""
    time.sleep(5)  # a watchdog would end the process about now
    assert float(torch.ones(8, device="cuda").sum()) == 8.0
    store = distributed.host("127.0.0.1")
    group = distributed.Sync(index=0, count=1, address=("127.0.0.1", store.port), timeout=60, device=GPU)
    sent = torch.arange(16, dtype=torch.uint8)
    assert torch.equal(group.broadcast(sent), sent) and "TORCH_NCCL_BLOCKING_WAIT" not in os.environ


def test_a_group_of_one_sends_to_itself_and_leaves_the_process_as_it_was():
    lives_and_sends()


def test_a_member_that_never_comes_costs_the_deadline():
    store, started = distributed.host("127.0.0.1"), time.monotonic()
    with pytest.raises(RuntimeError):
        distributed.Sync(index=0, count=2, address=("127.0.0.1", store.port), timeout=3, device=GPU)
    assert time.monotonic() - started < 30
    lives_and_sends()


def test_a_member_lost_after_the_meeting_costs_the_deadline():
    """Where NCCL makes its communicator: it waits there for ever, in a thread that is left behind."""
    store, started = distributed.host("127.0.0.1"), time.monotonic()
    store.set("come/1", "")  # it has come, and is gone
    group = distributed.Sync(index=0, count=2, address=("127.0.0.1", store.port), timeout=10, device=GPU)
    with pytest.raises((TimeoutError, RuntimeError)):
        group.broadcast(torch.ones(BYTES, dtype=torch.uint8))
    assert time.monotonic() - started < 60
    lives_and_sends()


def member(port, fall):
    """A process with the second GPU: it takes one bucket, and dies or hangs before the next."""
    group = distributed.Sync(index=1, count=2, address=("127.0.0.1", port), timeout=60, device=torch.device("cuda", 1))
    group.broadcast(torch.empty(BYTES, dtype=torch.uint8))
    if fall == "die":
        os._exit(1)
    time.sleep(300)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("fall", ["die", "hang"])
def test_a_member_lost_between_two_buckets_costs_the_deadline(fall):
    store, started = distributed.host("127.0.0.1"), time.monotonic()
    other = multiprocessing.get_context("spawn").Process(target=member, args=(store.port, fall))
    other.start()
    try:
        group = distributed.Sync(index=0, count=2, address=("127.0.0.1", store.port), timeout=60, device=GPU)
        bucket = torch.ones(BYTES, dtype=torch.uint8)
        group.broadcast(bucket)
        with pytest.raises((TimeoutError, RuntimeError)):
            for _ in range(1000):  # NCCL may take a few before it knows
                group.broadcast(bucket)
        assert time.monotonic() - started < 150
        lives_and_sends()
    finally:
        other.kill()
