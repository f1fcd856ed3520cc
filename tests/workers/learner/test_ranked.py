"""Ranks write and read one checkpoint, each its part, which takes longer than any collective of theirs may."""

import dataclasses
import time
from contextlib import contextmanager
from unittest import mock

import pytest
import torch

from pcpo_ray.data import weights
from pcpo_ray.data.updates import DriverState
from pcpo_ray.errors import RunError
from pcpo_ray.runs import checkpoints
from pcpo_ray.workers.learner import distributed
from tests.support import forks, part, small
from tests.support.trajectories import of_rank

TIMEOUT = 6.0
"""Seconds of the group's: those of each collective."""


def rank(index, address, model, folder, fail, answers):
    """One rank's process: it saves, restores, and takes part in a collective afterwards."""
    from pcpo_ray.workers.learner.learner import Learner

    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    if index == 1:  # a process may start late, and load slowly
        time.sleep(1.5 * TIMEOUT)
    deadlines = {"start": 120.0, "timeout": TIMEOUT}
    joined = distributed.join(index=index, count=2, sharded=True, address=address, device=cpu, **deadlines)
    if index == 1:
        time.sleep(1.5 * TIMEOUT)
    learner = Learner(small.run(model, optimizer__average=0.9), cpu, joined)
    write_part, finish, read = checkpoints.write_part, checkpoints.finish, checkpoints.read

    def slowly_allowed():
        if index == 1:
            time.sleep(1.5 * TIMEOUT)

    def fetched():
        time.sleep(1.5 * TIMEOUT)
        yield weights.pack(7, {"w": torch.ones(4)}, canary=(1.0,))

    def slow_part(*args, **options):
        if index == 1:
            time.sleep(1.5 * TIMEOUT)
            if fail:
                raise RunError("the disk of rank 1 is full")
        return write_part(*args, **options)

    def slow_finish(*args, **options):
        time.sleep(1.5 * TIMEOUT)
        return finish(*args, **options)

    def slow_read(*args, **options):
        if index == 1:
            time.sleep(1.5 * TIMEOUT)
        return read(*args, **options)

    checkpoints.write_part, checkpoints.finish, checkpoints.read = slow_part, slow_finish, slow_read
    try:
        learner.save(folder, DriverState(step=0), older=fetched() if joined.first else (), allowed=slowly_allowed)
        checkpoints.write_part, checkpoints.finish = write_part, finish
        answers.put((index, "saved", learner.restore(folder).step, learner.ema.updates))
    except Exception as error:
        answers.put((index, type(error).__name__, str(error), 0))
    distributed.Meeting(joined, "the end", seconds=60.0).tell()
    joined.total(torch.ones(1))


def saved_by_two(small_sd, folder, *, fail):
    store = distributed.host("127.0.0.1")
    address = ("127.0.0.1", store.port)
    return forks.answers_of(rank, [(0,), (1,)], address, small_sd, folder, fail, seconds=120)


AGAIN = {"objective__old_predictions": "recomputed", "optimizer__minibatches": 2, "objective__kl": 0.1}


def learned(index, address, run, batch, answers):
    """One rank's process: it trains on its part of a batch that another kind of sampler made."""
    with learner_of_rank(index, address, run) as learner:
        answers.put((index, told(learner.update(1, of_rank(run, batch, 1, learner.rank)))))


def counted(index, address, run, batch, answers):
    """One rank's process: an update's collectives by name, its passes with gradients, and the sharded parts."""
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor.debug import CommDebugMode

    prefetch = FSDPModule.set_modules_to_forward_prefetch
    with (
        mock.patch.object(FSDPModule, prefetch.__name__, autospec=True, side_effect=prefetch) as prefetching,
        learner_of_rank(index, address, run) as learner,
        mock.patch.object(learner, "_backward", wraps=learner._backward) as backward,
    ):
        with CommDebugMode() as communicated:
            update = learner.update(1, of_rank(run, batch, 1, learner.rank))
        counts = {str(name).split(".")[1]: count for name, count in communicated.get_comm_counts().items()}
        parts = [part for part in learner.policy.denoiser.module.modules() if isinstance(part, FSDPModule)]
        training = sum(any(p.requires_grad for p in own_of(part)) for part in parts)
        gathers, reductions = counts["_allgather_base_"], counts["_reduce_scatter_base_"]
        made = (gathers, reductions, backward.call_count, prefetching.call_count)
        answers.put((index, *made, len(parts), training, update.gradient_norm))


def own_of(part):
    """The parameters of a sharded part that are in none of the parts within it."""
    from torch.distributed.fsdp import FSDPModule

    inner = (one for one in part.modules() if isinstance(one, FSDPModule) and one is not part)
    within = {id(p) for one in inner for p in one.parameters()}  # type: ignore[attr-defined]
    return [p for p in part.parameters() if id(p) not in within]


@contextmanager
def learner_of_rank(index, address, run):
    from pcpo_ray.workers.learner.learner import Learner

    torch.set_num_threads(1)
    deadlines = {"start": 120.0, "timeout": 60.0}
    sharded = run.workers.learner.strategy == "fsdp2"
    device = torch.device("cpu")
    joined = distributed.join(index=index, count=2, sharded=sharded, address=address, device=device, **deadlines)
    yield Learner(run, device, joined)
    distributed.Meeting(joined, "the end", seconds=60.0).tell()


def by_two(work, run, groups):
    """What each of two ranks' processes answers."""
    store = distributed.host("127.0.0.1")
    return forks.answers_of(work, [(0,), (1,)], ("127.0.0.1", store.port), run, groups, seconds=200)[0]


def told(update):
    """The numbers of an update that ranks have in common."""
    table = update.diagnostics["per_timestep"]
    first = [update.first_log_ratio, update.mismatch["rms"], update.mismatch["largest"], update.gradient_norm]
    return [*first, update.kl, *table["mismatch"], *table["ratio_mean"]]


@pytest.mark.chaos
@pytest.mark.timeout(300)
@pytest.mark.parametrize("strategy", ["fsdp2", pytest.param("ddp", marks=part.MORE)])
def test_two_ranks_take_old_predictions_as_one_does(small_sd, strategy):
    from pcpo_ray.workers.learner.learner import Learner
    from pcpo_ray.workers.sampler import Sampler
    from tests.support.trajectories import batch

    run = small.run(small_sd, **AGAIN, workers__learner=f"{{ranks: 2, strategy: {strategy}}}")
    alone = Learner(small.run(small_sd, **AGAIN), torch.device("cpu"))
    rounding = Sampler(small.run(small_sd, sampling__storage="bfloat16"), torch.device("cpu"))
    groups = batch(rounding, alone, 3)
    expected = told(alone.update(1, groups))
    assert expected[0] == 0 and expected[1] > 1e-7
    for _, numbers in by_two(learned, run, groups):
        assert numbers == pytest.approx(expected, rel=1e-3, abs=1e-7)


@pytest.mark.chaos
@pytest.mark.timeout(300)
@pytest.mark.parametrize("train", ["{kind: lora, rank: 2, alpha: 2}", pytest.param("{kind: full}", marks=part.MORE)])
def test_ranks_gather_twice_a_pass_and_reduce_an_adapter_once_a_step(small_sd, train):
    from pcpo_ray.workers.learner.learner import Learner
    from tests.support.trajectories import batch, pair

    changes = {"optimizer__minibatches": 2, "optimizer__micro_batch": 4, "model__train": train}
    run = small.run(small_sd, **changes, workers__learner="{ranks: 2, strategy: fsdp2}")
    sampler, learner = pair(small_sd, **changes)
    groups = batch(sampler, learner, 4)
    expected = Learner(small.run(small_sd, **changes), torch.device("cpu")).update(1, groups)
    for _, gathers, reductions, passes, prefetching, parts, training, norm in by_two(counted, run, groups):
        assert passes == 8 and 0 < prefetching < parts
        # what comes before the first trained layer is not gathered again for the backward pass
        assert passes * parts < gathers <= 2 * passes * parts
        assert reductions == training * (2 if "lora" in train else passes)
        assert norm == pytest.approx(expected.gradient_norm, rel=1e-4)


@pytest.mark.chaos
@pytest.mark.timeout(300)
def test_a_slow_disk_is_waited_for_longer_than_a_collective(small_sd, tmp_path):
    folder = checkpoints.folder_for(tmp_path, 0)
    found, codes = saved_by_two(small_sd, folder, fail=False)
    assert (found, codes) == ([(0, "saved", 0, 0), (1, "saved", 0, 0)], [0, 0])
    assert {path.name for path in folder.glob("*-of-2.safetensors")} == {
        f"{kind}-{part}-of-2.safetensors" for kind in ("trainable", "averaged") for part in (1, 2)
    }
    assert checkpoints.verify(folder)["files"].keys() >= {"pytorch_lora_weights.safetensors"}
    assert checkpoints.read_version(folder, 7).manifest.canary == (1.0,)


@pytest.mark.chaos
@pytest.mark.timeout(300)
def test_a_rank_that_cannot_write_is_heard_by_all_and_leaves_nothing(small_sd, tmp_path):
    found, codes = saved_by_two(small_sd, checkpoints.folder_for(tmp_path, 0), fail=True)
    assert found == [
        (0, "CheckpointError", "rank 1 of the learner failed: the disk of rank 1 is full", 0),
        (1, "RunError", "the disk of rank 1 is full", 0),
    ]
    assert codes == [0, 0] and list((tmp_path / "checkpoints").iterdir()) == []


def elsewhere(index, address, run, batch, folder, answers):
    """One rank's process: learners whose parts are offloaded, or whose state is parked, beside one that is neither.

    All take two steps, with the first one's checkpoint between. It tells what was equal, and what was moved.
    """
    from torch.distributed import fsdp

    from pcpo_ray.workers.learner.learner import Learner
    from tests.support.two_places import two_places

    parking = dataclasses.replace(run, workers=dataclasses.replace(run.workers, park=True))
    with learner_of_rank(index, address, run) as plain, pytest.MonkeyPatch.context() as patch:
        cpu, rank = torch.device("cpu"), plain.rank
        with mock.patch.object(fsdp, "fully_shard", wraps=fsdp.fully_shard) as cutting:
            offloaded = Learner(run, cpu, dataclasses.replace(rank, offloaded=True))
        policies = {type(call.kwargs["offload_policy"]).__name__ for call in cutting.call_args_list}
        copies = two_places(patch)
        learners, same = (plain, offloaded, Learner(parking, cpu, rank)), []
        for step in (1, 2):
            norms = {one.update(step, of_rank(run, batch, step, rank)).gradient_norm for one in learners}
            values = [[*one.masters.values.values(), *one.ema.values] for one in learners]
            mine, *others = [[value.detach().to_local() for value in found] for found in values]
            same.append(len(norms) == 1 and all(all(map(torch.equal, mine, other)) for other in others))
            if step == 1:
                plain.save(folder, DriverState(step=1))
                for one in learners:
                    one.restore(folder)
        for averaged in (False, True):
            sent = {sent_by(one, averaged) for one in learners}
            same.append(len(sent) == 1)
        answers.put((index, same, policies, len(copies.storages) > 0, copies.alive))


def sent_by(learner, averaged):
    """The checksum of what the first rank sends, with the others' help; None on these."""
    if learner.rank.first:
        return learner.weights(averaged=averaged).manifest.checksum
    return learner.assist(averaged=averaged)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "train",
    [
        "{kind: lora, rank: 2, alpha: 2}",
        pytest.param("{kind: full}", marks=pytest.mark.chaos),
    ],
)
def test_offloaded_ranks_and_a_parked_state_keep_all_bits(small_flux, tmp_path, train):
    from tests.support.trajectories import batch, pair

    changes = {"model__train": train, "model__dtype": "bfloat16", "optimizer__average": 0.5}
    run = small.run(small_flux, **changes, workers__learner="{ranks: 2, strategy: fsdp2}")
    sampler, learner = pair(small_flux, **changes)
    groups = batch(sampler, learner, 4)
    store = distributed.host("127.0.0.1")
    address = ("127.0.0.1", store.port)
    found, codes = forks.answers_of(elsewhere, [(0,), (1,)], address, run, groups, tmp_path / "saved", seconds=250)
    assert found == [(index, [True] * 4, {"CPUOffloadPolicy"}, True, 0) for index in range(2)] and codes == [0, 0]
