"""The learner's network lent to a sampler: the bits of any sampler, and nothing of the learner's is disturbed."""

import pytest
import torch

from pcpo_ray.data.updates import DriverState
from pcpo_ray.data.weights import unpack
from pcpo_ray.errors import PcpoError, RunError, WeightsError
from pcpo_ray.runs import checkpoints
from pcpo_ray.workers.learner import distributed, sharding
from pcpo_ray.workers.learner.learner import Learner
from pcpo_ray.workers.sampler import Sampler
from tests.support import forks, small
from tests.support.trajectories import ADVANTAGES, CPU, same_bits, task

KINDS = [
    {"optimizer__average": 0.9},
    {"model__train": "{kind: full}", "model__dtype": "bfloat16", "optimizer__learning_rate": 1e-4},
    {"optimizer__mixed_precision": "bf16", "sampling__guidance_scale": 3},
    {"credit__kind": "interpolate", "objective__kl": 0.1},
    {"model__gradient_checkpointing": True, "sampling__batch": 2},
]


def both(path, **changes):
    run = small.run(path, **{"optimizer__learning_rate": 1e-2, **changes})
    learner = Learner(run, CPU)
    return Sampler(run, CPU), learner, learner.lend()


def sampled(sampler, asked):
    trajectory, images = sampler.sample(asked)
    return trajectory, torch.from_numpy(images)


def equal(one, other):
    trajectories = one[0] is other[0] is None or same_bits(one[0], other[0])
    return trajectories and torch.equal(one[1], other[1])


def learned(learner, sampler):
    asked = task(version=learner.version, step=learner.version + 1)
    learner.update(learner.version + 1, [(learner.version, sampler.sample(asked)[0], ADVANTAGES)])


def values(learner):
    return {name: value.detach().clone() for name, value in learner.masters.values.items()}


@pytest.mark.parametrize("changes", KINDS)
def test_the_lent_network_samples_the_bits_of_a_sampler_that_loads(small_sd, changes):
    apart, learner, lent = both(small_sd, **changes)
    for version in range(3):
        sent = learner.weights()
        assert lent.prove(sent.manifest) == apart.load(sent) == sent.manifest.checksum
        assert lent.holds(sent.manifest.checksum)
        asked = task(version=version, step=version + 1)
        assert equal(sampled(lent, asked), sampled(apart, asked))
        learned(learner, lent)
        assert not lent.holds(sent.manifest.checksum)


@pytest.mark.parametrize("changes", KINDS)
def test_what_learns_with_the_lent_network_learns_the_same(small_sd, changes):
    apart, alone, _ = both(small_sd, **changes)
    _, learner, lent = both(small_sd, **changes)
    for _ in range(3):
        apart.load(alone.weights())
        lent.prove(learner.weights().manifest)
        learned(alone, apart)
        learned(learner, lent)
    mine, theirs = values(learner), values(alone)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_an_ema_or_older_weights_disturb_nothing_of_the_learner(small_sd, tmp_path):
    apart, learner, lent = both(small_sd, optimizer__average=0.5)
    first = learner.weights()
    lent.prove(first.manifest)
    learned(learner, lent)
    own, mean = learner.weights(), learner.weights(averaged=True)
    lent.prove(own.manifest)
    before = values(learner)
    for sent in (mean, first, mean, own):
        assert lent.holds(sent.manifest.checksum) == (sent is own)
        if sent is not own:
            lent.load(sent)
        apart.load(sent)
        assert equal(sampled(lent, task()), sampled(apart, task()))
    lent.load(mean)
    learner.save(tmp_path / "step-000001", DriverState(step=1))  # in the midst of an evaluation
    saved = checkpoints.read(tmp_path / "step-000001").parameters
    after = values(learner)
    assert all(torch.equal(before[name], after[name]) and torch.equal(before[name], saved[name]) for name in before)
    lent.load(mean)
    assert unpack(learner.weights()).keys() == before.keys()
    assert learner.weights().manifest.checksum == own.manifest.checksum
    lent.load(mean)
    other = Learner(learner.run, CPU)
    other.restore(tmp_path / "step-000001")
    for one in (learner, other):
        apart.load(own)
        learned(one, apart)
    assert all(torch.equal(values(learner)[name], values(other)[name]) for name in before)


def test_ranks_that_part_are_told_by_their_checksums(small_sd):
    _, learner, lent = both(small_sd)
    sent = learner.weights()
    next(iter(learner.masters.values.values())).data.add_(1e-3)
    with pytest.raises(WeightsError, match=r"rank 0 of the learner holds weights of checksum \w+; version 0 has"):
        lent.prove(sent.manifest)
    assert not lent.holds(sent.manifest.checksum)


def test_a_base_network_that_differs_is_told_by_its_canary(small_sd):
    _, learner, lent = both(small_sd)
    sent = learner.weights()
    frozen = next(p for p in learner.policy.denoiser.module.parameters() if not p.requires_grad)
    frozen.data.add_(1.0)
    with pytest.raises(WeightsError, match="predicts"):
        lent.prove(sent.manifest)


# -- ranks in processes ------------------------------------------------------------------------------------------------


def rank(index, count, address, run, folder, answers):
    """One rank's process."""
    try:
        answers.put((index, steps(index, count, address, run, folder)))
    except Exception as error:
        answers.put((index, repr(error)))
        raise


def refuse():
    raise RunError("the disk is full")


def steps(index, count, address, run, folder):
    """What a rank found equal, in two steps of sampling, an evaluation of the EMA, checkpoints and an update."""
    torch.set_num_threads(1)
    sharded = run.workers.learner.strategy == "fsdp2"
    joined = distributed.join(
        index=index,
        count=count,
        sharded=sharded,
        offloaded=run.workers.learner.offload,
        address=address,
        start=240.0,
        timeout=60.0,
        device=CPU,
    )
    learner, plain, apart = Learner(run, CPU, joined), Learner(run, CPU, joined), Sampler(run, CPU)
    lent, same = learner.lend(), []

    def sent(averaged):
        found: list = [None]
        if index == 0:
            found = [learner.weights(averaged=averaged)]
        else:
            learner.assist(averaged=averaged)
        torch.distributed.broadcast_object_list(found, src=0)
        return found[0]

    def checked(asked):
        pair = [sampled(sampler, asked) for sampler in (lent, apart)]
        same.append(equal(*pair))
        return pair[0][0]

    for step in (1, 2):
        own = sent(False)
        lent.prove(own.manifest)
        apart.load(own)
        groups = [checked(task(version=step - 1, step=step, position=place)) for place in range(2)]
        for place in range(index):  # no rank waits for one that samples less
            checked(task(version=step - 1, step=step, position=2 + place))
        mean = sent(True)
        for manifest, snapshot in ((mean.manifest, mean), (own.manifest, own)):
            if not lent.holds(manifest.checksum):
                lent.load(snapshot)
            apart.load(snapshot)
            checked(task(version=step - 1, position=5 - index, purpose="evaluate"))
            if snapshot is mean and (sharded or index == 0):  # with ddp the first rank alone is asked, as on Ray
                learner.save(checkpoints.folder_for(folder, step - 1), DriverState(step=step - 1))
        if sharded:  # one rank may not save, which the others hear of
            with pytest.raises(PcpoError, match="the disk is full"):
                learner.save(folder / "none", DriverState(step=step - 1), allowed=refuse if index else lambda: None)
            same.append(not lent.holds(own.manifest.checksum))
            with pytest.raises(WeightsError, match="holds a part of its network only"):
                lent.load(own)
            lent.prove(own.manifest)
            checked(task(version=step - 1, step=step, position=9))
        batch = [(step - 1, group, ADVANTAGES) for group in groups]
        for one in (learner, plain):
            one.update(step, batch)
    whole = [sharding.gather_whole(p.detach()) for one in (learner, plain) for p in one.masters.values.values()]
    half = len(whole) // 2
    same.append(all(torch.equal(mine, theirs) for mine, theirs in zip(whole[:half], whole[half:], strict=True)))
    joined.total(torch.ones(1))
    return same


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("count", "strategy", "changes"),
    [
        (2, "fsdp2", {"model__train": "{kind: full}", "model__dtype": "bfloat16"}),
        (2, "fsdp2", {"credit__kind": "interpolate", "objective__kl": 0.1}),
        pytest.param(
            *(4, "fsdp2", {"sampling__guidance_scale": 3, "workers__learner__offload": "true"}), marks=pytest.mark.chaos
        ),
        pytest.param(2, "ddp", {}, marks=pytest.mark.chaos),
    ],
)
def test_ranks_that_sample_alone_and_learn_together_keep_all_bits(small_sd, tmp_path, count, strategy, changes):
    role = f"{{ranks: {count}, strategy: {strategy}, samples: true}}"
    run = small.run(small_sd, optimizer__average=0.5, workers__learner=role, **changes)
    store = distributed.host("127.0.0.1")
    address = ("127.0.0.1", store.port)
    own = [(index, count) for index in range(count)]
    found, _ = forks.answers_of(rank, own, address, run, tmp_path, seconds=250)
    seen = 4 + 2 * (strategy == "fsdp2")
    assert found == [(index, [True] * (2 * (seen + index) + 1)) for index in range(count)]
