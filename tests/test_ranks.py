"""Ranks: who writes what, and a group that lives for one version of the weights."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from pcpo_ray import ranks

CPU = torch.device("cpu")


def test_each_rank_writes_about_as_many_bytes():
    sizes = {"large": 100, "half": 50, "other half": 50, "small": 1}
    written = ranks.owners(sizes, 2)
    assert written.keys() == sizes.keys()
    per_rank = [sum(sizes[name] for name, rank in written.items() if rank == index) for index in range(2)]
    assert sorted(per_rank) == [100, 101]
    assert set(ranks.owners(sizes, 1).values()) == {0}


def test_one_rank_alone_needs_no_group():
    alone = ranks.Rank()
    assert alone.first and not alone.sharded
    assert alone.total(torch.tensor([2.0])).item() == alone.largest(torch.tensor([2.0])).item() == 2.0
    parameter = torch.nn.Parameter(torch.ones(2))
    alone.add_gradients([parameter])
    assert parameter.grad is None
    alone.wait()


def test_everybody_gets_the_bytes_of_the_first():
    store = ranks.host("127.0.0.1")
    sent = torch.arange(256, dtype=torch.uint8)

    def member(index):
        group = ranks.Sync(index=index, count=3, address=("127.0.0.1", store.port), timeout=20, device=CPU)
        return group.broadcast(sent if index == 0 else torch.empty_like(sent))

    with ThreadPoolExecutor(3) as threads:
        assert all(torch.equal(found, sent) for found in threads.map(member, range(3)))


def test_one_that_never_comes_costs_the_deadline():
    store = ranks.host("127.0.0.1")
    with pytest.raises(RuntimeError, match=r"(?i)time"):
        ranks.Sync(index=0, count=2, address=("127.0.0.1", store.port), timeout=1, device=CPU).broadcast(torch.ones(1))
