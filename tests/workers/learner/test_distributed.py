"""Ranks: who writes what, who learns what, one that fails, and a group that lives for one version of the weights."""

import dataclasses
import re
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from pcpo_ray.errors import CheckpointError, RunError, TrainingError
from pcpo_ray.workers.learner import autotune, distributed, mini_batches, sharding
from pcpo_ray.workers.learner.learner import Learner
from pcpo_ray.workers.packing import pack_trajectory
from pcpo_ray.workers.sampler import Sampler
from tests.support import lockstep, small
from tests.support.trajectories import of_rank, task

CPU = torch.device("cpu")


def test_each_rank_writes_about_as_many_bytes():
    sizes = {"large": 100, "half": 50, "other half": 50, "small": 1}
    written = sharding.owners(sizes, 2)
    assert written.keys() == sizes.keys()
    per_rank = [sum(sizes[name] for name, rank in written.items() if rank == index) for index in range(2)]
    assert sorted(per_rank) == [100, 101]
    assert set(sharding.owners(sizes, 1).values()) == {0}


def test_one_rank_alone_needs_no_group():
    alone = distributed.Rank()
    assert alone.first and not alone.sharded
    assert alone.total(torch.tensor([2.0])).item() == alone.largest(torch.tensor([2.0])).item() == 2.0
    parameter = torch.nn.Parameter(torch.ones(2))
    alone.add_gradients([parameter])
    assert parameter.grad is None
    with distributed.Meeting(alone, "alone", seconds=0.0).held() as _:
        assert distributed.Meeting(alone, "alone", seconds=0.0).tell("x") == ["x"]


def test_everybody_gets_the_bytes_of_the_first():
    store = distributed.host("127.0.0.1")
    sent = torch.arange(256, dtype=torch.uint8)

    def member(index):
        group = distributed.Sync(index=index, count=3, address=("127.0.0.1", store.port), timeout=20, device=CPU)
        return group.broadcast(sent if index == 0 else torch.empty_like(sent))

    with ThreadPoolExecutor(3) as threads:
        assert all(torch.equal(found, sent) for found in threads.map(member, range(3)))


def test_one_that_never_comes_costs_the_deadline():
    store = distributed.host("127.0.0.1")
    with pytest.raises(RuntimeError, match=r"(?i)time"):
        distributed.Sync(index=0, count=2, address=("127.0.0.1", store.port), timeout=1, device=CPU).broadcast(
            torch.ones(1)
        )


def test_one_that_waits_where_nothing_bounds_it_is_left_and_others_send():
    """As ncclCommInitRank waits for a member that has met the others, and then died."""
    store, gone = distributed.host("127.0.0.1"), threading.Event()
    group = distributed.Sync(index=0, count=1, address=("127.0.0.1", store.port), timeout=1, device=CPU)
    group.group = types.SimpleNamespace(broadcast=lambda tensor, root: gone.wait(250))
    with pytest.raises(TimeoutError):
        group.broadcast(torch.ones(1))
    again = distributed.Sync(index=0, count=1, address=("127.0.0.1", store.port), timeout=20, device=CPU)
    assert torch.equal(again.broadcast(torch.ones(1)), torch.ones(1))
    gone.set()


def meet(actions, seconds=20.0):
    """What each rank's action, given its meeting, returned or raised."""
    store = distributed.host("127.0.0.1")

    def act(index):
        own = TCPStore("127.0.0.1", store.port, timeout=timedelta(seconds=20))
        rank = distributed.Rank(index=index, count=len(actions), sharded=True, store=own)
        meeting = distributed.Meeting(rank, "checkpoint 1", seconds=seconds)
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


def test_a_rank_that_hangs_while_writing_is_named_after_the_deadline():
    slow = lambda meeting: time.sleep(3)  # noqa: E731
    first, second, _ = meet([lambda meeting: meeting.tell(), lambda meeting: meeting.tell(), slow], seconds=1.0)
    for error in (first, second):
        assert isinstance(error, CheckpointError)
        assert re.search(r"waited 1 s for ranks \[2\] \(checkpoint 1\)", str(error)) or (
            "rank 0 of the learner failed" in str(error) or "rank 1 of the learner failed" in str(error)
        )


# -- learning a batch together -----------------------------------------------------------------------------------------


ADVANTAGES = ([1.0, -1.0, 0.5, -0.5], [0.3, 0.2, -0.9, 0.4], [-1.2, 0.7, 0.1, 0.4])


def sampled(sampler, learner, step, count):
    """A batch of groups as they travel."""
    sampler.load(learner.weights())
    asked = [task(position=n, version=learner.version, step=step) for n in range(count)]
    made = [pack_trajectory(sampler.policy, one, sampler.sample(one)[0]) for one in asked]
    return [(learner.version, one, ADVANTAGES[n % 3]) for n, one in enumerate(made)]


def learners(run, count):
    return [Learner(run, CPU, rank) for rank in lockstep.ranks(count)]


def learn(found, run, step, batch):
    """What each rank's update gave or raised."""
    return lockstep.at_once(lambda one: one.update(step, of_rank(run, batch, step, one.rank)), found)


SETTINGS = [
    {},
    {"optimizer__minibatches": 2, "optimizer__epochs": 2},
    {"optimizer__minibatches": 2, "objective__correction": 2.0},
    {"objective__correction": 2.0, "sampling__batch": 3},
    {"objective__old_predictions": "recomputed", "optimizer__minibatches": 2, "objective__correction": 2.0},
    {"objective__kl": 0.1, "credit__kind": "interpolate"},
    {"objective__log_ratio": "replay", "credit__kind": "native"},
    {"sampling__batch": 2, "sampling__subset": "{kind: share, share: 0.5}"},
    {"optimizer__micro_batch": 16, "sampling__subset": "{kind: window, size: 2, every: 1}"},
    {"optimizer__micro_batch": 2, "objective__step_loss": "noise"},
    {"optimizer__mixed_precision": "bf16", "objective__clip_scale": "weight", "credit__kind": "native"},
    {"optimizer__average": 0.9, "sampling__guidance_scale": 1.0, "objective__kind": "clipped_ratio"},
]


@pytest.mark.parametrize(
    ("changes", "count"), [*((changes, 3) for changes in SETTINGS), (SETTINGS[0], 8), (SETTINGS[2], 5)]
)
def test_any_number_of_ranks_learns_what_one_rank_learns(small_sd, changes, count):
    run = small.run(small_sd, **changes, rollout__prompts=2, optimizer__max_gradient_norm=1e9)
    sampler, alone, together = Sampler(run, CPU), Learner(run, CPU), learners(run, count)
    for learner in (alone, *together):
        # AdamW's first steps are the gradient's sign: of one that is 0 but for rounding, rounding's
        learner.optimizer.optimizer.param_groups[0]["eps"] = 1e-3
    old = None
    for step in (1, 2):
        batch = sampled(sampler, alone, step, 2)
        if old is not None and "subset" not in str(changes):
            batch = old if "updates" in str(changes) else [old[0], batch[1]]
        expected, found = alone.update(step, batch), learn(together, run, step, batch)
        old = batch
        for update in found:
            assert not isinstance(update, Exception), update
            assert update.loss == pytest.approx(expected.loss, rel=1e-4, abs=1e-7)
            assert update.gradient_norm == pytest.approx(expected.gradient_norm, rel=1e-4)
            assert (update.kl is None) == (expected.kl is None)
            assert update.kl is None or update.kl == pytest.approx(expected.kl, rel=1e-4, abs=1e-9)
            # the weights are about 1 and rounded in float32, their deviation is small
            assert update.importance is None or update.importance == pytest.approx(
                expected.importance, rel=1e-4, abs=1e-5
            )
            assert (update.importance is None) == (expected.importance is None)
            assert update.first_log_ratio == pytest.approx(expected.first_log_ratio, rel=1e-3, abs=1e-6)
            for name, values in expected.diagnostics["per_timestep"].items():
                here = update.diagnostics["per_timestep"][name]
                assert [value is None for value in here] == [value is None for value in values]
                there = [value for value in values if value is not None]
                assert [value for value in here if value is not None] == pytest.approx(there, rel=1e-3, abs=1e-6), name
        for name, value in alone.masters.values.items():
            assert all(torch.equal(one.masters.values[name], together[0].masters.values[name]) for one in together)
            assert torch.allclose(value, together[0].masters.values[name], rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize(
    ("count", "prompts", "each"), [(4, 2, [2, 2, 2, 2]), (3, 2, [3, 3, 2]), (8, 1, [1] * 4 + [0] * 4)]
)
def test_no_rank_idles_while_another_has_two_passes_more(small_sd, monkeypatch, count, prompts, each):
    run = small.run(small_sd, rollout__prompts=prompts)
    sampler, together = Sampler(run, CPU), learners(run, count)
    batch, passed = sampled(sampler, together[0], 1, prompts), dict.fromkeys(range(count), 0)
    for learner in together:
        of_pass = learner.loss.of_pass

        def counted(*arguments, index=learner.rank.index, of_pass=of_pass, **more):
            passed[index] += 1
            return of_pass(*arguments, **more)

        monkeypatch.setattr(learner.loss, "of_pass", counted)
    assert not any(isinstance(update, Exception) for update in learn(together, run, 1, batch))
    assert list(passed.values()) == each


def test_of_a_group_that_it_learns_in_part_a_rank_opens_its_own_images(small_sd, monkeypatch):
    run = small.run(small_sd, rollout__prompts=1, sampling__batch=1)
    sampler, together = Sampler(run, CPU), learners(run, 2)
    batch, opened = sampled(sampler, together[0], 1, 1), {0: [], 1: []}
    for learner in together:
        open_one = learner.loader.open

        def opening(group, rows, index=learner.rank.index, open_one=open_one):
            one = open_one(group, rows)
            opened[index].append((rows.start, len(one.trajectory)))
            return one

        monkeypatch.setattr(learner.loader, "open", opening)
    assert not any(isinstance(update, Exception) for update in learn(together, run, 1, batch))
    assert opened == {0: [(0, 2)], 1: [(2, 2)]}


def test_ranks_choose_one_micro_batch_that_all_of_them_can_have(small_sd, monkeypatch):
    run = small.run(small_sd, rollout__prompts=3, optimizer__micro_batch="auto")
    seen, lock = [], threading.Lock()

    def measured(sizes, same, learn, device):
        with lock:
            seen.append((list(sizes), [same(size) for size in sizes]))
        return torch.tensor([1 / size for size in sizes], dtype=torch.float64)

    monkeypatch.setattr(autotune, "measure", measured)
    sampler, together = Sampler(run, CPU), learners(run, 3)
    batch = sampled(sampler, together[0], 1, 3)

    def find(learner):
        learner.loss.predict = lambda pairs: pairs.predictions
        blocks, own = (
            learner.loader.blocks(batch, mini_batches.split_groups(run.optimizer, 3, seed=0, step=1)[0]),
            of_rank(run, batch, 1, learner.rank),
        )
        return learner.autotune(own, blocks, mini_batches.rank_share(blocks, learner.rank.index, 3))

    found = lockstep.at_once(find, together)
    assert seen == [([4, 8, 16], [True] * 3)] * 3  # of 48 pairs each rank has four blocks of four
    assert [one.size for one in found] == [learner.micro_batch for learner in together] == [16] * 3


# -- a rank that fails -------------------------------------------------------------------------------------------------


def failing(small_sd, damage, error, **changes):
    """What every rank of three raises where `damage` was done to the batch, or to one of the learners."""
    run = small.run(small_sd, rollout__prompts=3, **changes)
    sampler, together = Sampler(run, CPU), learners(run, 3)
    batch = sampled(sampler, together[0], 1, 3)
    damage(batch, together)
    started = time.monotonic()
    raised = learn(together, run, 1, batch)
    assert time.monotonic() - started < 30
    assert [type(one) for one in raised] == [error] * 3, raised
    assert len({str(one) for one in raised}) == 1
    return str(raised[0]), together


def test_a_group_that_one_rank_cannot_unpack_ends_the_update_of_all(small_sd):
    def damage(batch, together):
        version, packed, advantages = batch[1]
        batch[1] = (version, dataclasses.replace(packed, digests=("",) * 4), advantages)

    message, together = failing(small_sd, damage, TrainingError)
    assert message.startswith("rank ") and "the group at place 1 of step 1 has other noise or latents" in message
    assert [learner.version for learner in together] == [0, 0, 0]


@pytest.mark.parametrize("changes", [{}, {"optimizer__minibatches": 3}])
def test_a_log_ratio_that_is_not_zero_on_one_rank_is_found_out_by_all(small_sd, changes):
    def damage(batch, together):
        place = mini_batches.split_groups(together[0].run.optimizer, 3, seed=0, step=1)[0][-1]
        version, packed, advantages = batch[place]
        dtype, values = packed.predictions
        values = values.copy()
        values[:, -1] += 0.1  # of the last step: no latents follow from it
        batch[place] = (version, dataclasses.replace(packed, predictions=(dtype, values)), advantages)

    message, _ = failing(small_sd, damage, TrainingError, **changes)
    assert "sampler and learner do not compute the same prediction" in message and "rank" not in message


def test_a_log_ratio_that_is_not_finite_on_one_rank_ends_the_update_of_all(small_sd):
    def damage(batch, together):
        predict = together[2].loss.predict
        together[2].loss.predict = lambda pairs: predict(pairs) * float("nan")

    message, _ = failing(small_sd, damage, TrainingError)
    assert message.startswith("rank 2 of 3: at step ") and "is not finite" in message


@pytest.mark.parametrize(
    "changes", [{}, {"optimizer__micro_batch": "auto"}, {"optimizer__minibatches": 3, "objective__correction": 2}]
)
def test_what_one_rank_fails_of_is_said_by_all(small_sd, monkeypatch, changes):
    def damage(batch, together):
        predict, failed = together[1].loss.predict, []

        def without_room(*arguments, **more):
            if failed:
                return predict(*arguments)
            failed.append(1)  # once: whatever it was doing, nobody goes on
            raise torch.OutOfMemoryError("no room for 3 GiB")

        for place, (_, packed, advantages) in enumerate(batch):
            batch[place] = (-1 if "correction" in str(changes) else 0, packed, advantages)
        monkeypatch.setattr(together[1].loss, "predict", without_room)
        monkeypatch.setattr(together[1].autotuner, "_measure", without_room)

    message, _ = failing(small_sd, damage, distributed.RankError, **changes)
    assert message == "rank 1 of 3: OutOfMemoryError: no room for 3 GiB"


def test_one_rank_alone_raises_what_it_has_failed_of(small_sd, monkeypatch):
    run = small.run(small_sd)
    sampler, learner = Sampler(run, CPU), Learner(run, CPU)

    def without_room(*arguments):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(learner.loss, "predict", without_room)
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        learner.update(1, sampled(sampler, learner, 1, 2))


def test_who_waits_in_vain_says_what_the_first_to_fail_has_said():
    store = distributed.host("127.0.0.1")
    one, other = (distributed.Rank(index=index, count=2, store=store) for index in range(2))
    first = one.told(ValueError("a bad thing"))
    late = other.told(RuntimeError("Timed out waiting 60000ms"))
    assert str(first) == str(late) == "rank 0 of 2: ValueError: a bad thing"
    assert type(first) is type(late) is distributed.RankError
