"""Weights sent between GPUs: a member that is lost costs the sender the deadline, and not its process."""

import time

import pytest
import torch

from pcpo_ray.workers.learner import distributed

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_a_member_that_never_comes_costs_the_deadline():
    store, started = distributed.host("127.0.0.1"), time.monotonic()
    with pytest.raises(RuntimeError):
        distributed.Sync(index=0, count=2, address=("127.0.0.1", store.port), timeout=3, device=torch.device("cuda"))
    assert time.monotonic() - started < 30
    time.sleep(5)  # a watchdog would end the process about now
    assert float(torch.ones(8, device="cuda").sum()) == 8.0


def test_a_group_of_one_sends_to_itself_and_leaves_the_process_as_it_was():
    import os

    store = distributed.host("127.0.0.1")
    group = distributed.Sync(
        index=0, count=1, address=("127.0.0.1", store.port), timeout=20, device=torch.device("cuda")
    )
    sent = torch.arange(16, dtype=torch.uint8)
    assert torch.equal(group.broadcast(sent), sent) and "TORCH_NCCL_BLOCKING_WAIT" not in os.environ
