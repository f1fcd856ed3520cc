"""Ranks: who writes what, and a group that lives for one version of the weights."""

import re
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from pcpo_ray import ranks
from pcpo_ray.errors import CheckpointError, RunError

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
    with ranks.Meeting(alone, "alone", seconds=0.0).held() as _:
        assert ranks.Meeting(alone, "alone", seconds=0.0).tell("x") == ["x"]


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


def meet(actions, seconds=20.0):
    """What each rank's action, given its meeting, returned or raised."""
    store = ranks.host("127.0.0.1")

    def act(index):
        own = TCPStore("127.0.0.1", store.port, timeout=timedelta(seconds=20))
        rank = ranks.Rank(index=index, count=len(actions), sharded=True, store=own)
        meeting = ranks.Meeting(rank, "checkpoint 1", seconds=seconds)
        try:
            with meeting.held():
                return actions[index](meeting)
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(actions)) as threads:
        return list(threads.map(act, range(len(actions))))


def test_ranks_that_write_hear_each_other_in_their_order():
    def telling(said):
        return lambda meeting: [meeting.tell(said), meeting.tell({said: 1}), meeting.tell()]

    found = [["a", "b", "c"], [{"a": 1}, {"b": 1}, {"c": 1}], [None, None, None]]
    assert meet([telling("a"), telling("b"), telling("c")]) == [found] * 3


@pytest.mark.parametrize(
    ("error", "heard"), [(RunError("disk full"), CheckpointError), (ValueError("x"), RuntimeError)]
)
def test_of_a_rank_that_fails_the_others_hear_at_once(error, heard):
    def failing(meeting):
        meeting.tell()
        raise error

    started = time.monotonic()
    first, second, third = meet([lambda meeting: [meeting.tell(), meeting.tell()], failing, failing], seconds=60.0)
    assert second is error and third is error and type(first) is heard
    assert str(first).endswith(f"of the learner failed: {error}") and time.monotonic() - started < 10


def test_a_rank_that_hangs_while_it_writes_costs_the_meetings_deadline_and_is_named():
    slow = lambda meeting: time.sleep(3)  # noqa: E731
    first, second, _ = meet([lambda meeting: meeting.tell(), lambda meeting: meeting.tell(), slow], seconds=1.0)
    for error in (first, second):
        assert isinstance(error, CheckpointError)
        assert re.search(r"waited 1 s for ranks \[2\] to write their parts \(checkpoint 1\)", str(error)) or (
            "rank 0 of the learner failed" in str(error) or "rank 1 of the learner failed" in str(error)
        )
