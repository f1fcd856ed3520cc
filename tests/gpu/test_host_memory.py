"""Tensors in host memory have left the GPU, and what is computed with them is the same (workers.park, offload)."""

import gc

import numpy as np
import pytest
import torch
from torch import nn

from pcpo_ray.data.parked import parked, parked_network
from pcpo_ray.data.tensors import part_here
from pcpo_ray.data.updates import DriverState
from pcpo_ray.workers.learner import distributed, optimizers
from pcpo_ray.workers.learner.learner import Learner
from pcpo_ray.workers.learner.loss import FIRST_RATIO_LIMIT
from pcpo_ray.workers.sampler import Sampler
from pcpo_ray.workers.scorer import Scorer
from tests.support import small
from tests.support.trajectories import ADVANTAGES, task

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GPU = torch.device("cuda")
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)


def allocated():
    """Bytes of tensors on the GPU."""
    gc.collect()
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated()


def test_a_parked_network_leaves_the_gpu_and_computes_the_same():
    network, inputs = nn.Linear(1024, 1024, device=GPU).requires_grad_(False), torch.randn(8, 1024, device=GPU)
    expected, there = network(inputs), allocated()
    lying = parked_network(True, network, GPU)
    size = 4 * (1024 * 1024 + 1024)
    for _ in range(2):
        assert allocated() == there - size
        assert all(parameter.is_pinned() for parameter in network.parameters())
        with lying.awake():
            assert allocated() == there
            assert torch.equal(network(inputs), expected)


def test_a_parked_optimizer_leaves_the_gpu_and_steps_the_same():
    assert all(map(torch.equal, stepped(park=False), stepped(park=True)))


def stepped(*, park):
    """The parameter and the moments after three steps of AdamW."""
    parameter = nn.Parameter(torch.linspace(-1, 1, 1 << 20, device=GPU))
    optimizer = torch.optim.AdamW([parameter])
    lying, before = parked(park, lambda: optimizers.state_tensors(optimizer), GPU), allocated()
    for count in (1, 2, 3):
        parameter.grad = torch.sin(count * parameter.detach())
        with lying.awake():
            optimizer.step()
        optimizer.zero_grad()
        assert allocated() == before + (0 if park else 2 * parameter.nbytes)
    moments = [value for value in optimizers.state_tensors(optimizer) if value.ndim]
    assert all(value.is_pinned() == park for value in moments)
    return [parameter.detach().cpu(), *(value.cpu() for value in moments)]


def test_a_parked_sampler_and_scorer_give_the_same_bits(small_sd):
    changes = {"rewards": "[{kind: clip_score}]", "evaluation__rewards": "[{kind: diversity}]"}
    plain, run = (small.run(small_sd, **changes, workers__park=park) for park in ("false", "true"))
    (first, images), (again, same) = (Sampler(one, GPU).sample(task()) for one in (plain, run))
    assert torch.equal(first.predictions, again.predictions) and (images == same).all()
    expected = Scorer(plain, GPU).score(task(purpose="evaluate"), IMAGES)[0]
    scorer = Scorer(run, GPU)  # of the same network, which a process keeps once
    size = sum(tensor.nbytes for network in scorer.parked for tensor in network.parameters())
    there = allocated()
    assert scorer.score(task(purpose="evaluate"), IMAGES)[0] == expected
    assert allocated() - there < size / 2
    assert Scorer(plain, GPU).score(task(purpose="evaluate"), IMAGES)[0] == expected  # the next of this process


def test_a_parked_learner_takes_less_of_the_gpu_by_what_is_parked(small_sd):
    sampler, taken = Sampler(small.run(small_sd), GPU), []
    batch = [(0, sampler.sample(task())[0], ADVANTAGES)]
    Learner(small.run(small_sd), GPU).update(1, batch)  # libraries take memory of their own at first
    for park in ("false", "true"):
        before = allocated()
        learner = Learner(small.run(small_sd, optimizer__average=0.5, workers__park=park), GPU)
        learner.update(1, batch)
        taken.append(allocated() - before)
        asleep = sum(home.nbytes for one in (learner.resting, learner.policy.vae) for home in one.homes.values())
        assert (asleep > 0) == (park == "true")
        del learner
    assert taken[0] - taken[1] >= asleep


def test_an_offloaded_rank_has_its_parts_in_host_memory(small_sd, tmp_path):
    works(small_sd, tmp_path, GPU)


def works(model, folder, device):
    """A rank of one: NCCL takes no two of one GPU."""
    store = distributed.host("127.0.0.1")
    address = ("127.0.0.1", store.port)
    rank = distributed.join(
        index=0, count=1, sharded=True, offloaded=True, address=address, start=60.0, timeout=60.0, device=device
    )
    try:
        role = "{ranks: 2, strategy: fsdp2, offload: true, samples: true}"
        run = small.run(model, optimizer__average=0.5, workers__learner=role)
        learner, sampler = Learner(run, device, rank), Sampler(run, device)
        lent = learner.lend()
        for step in (1, 2):
            sent = learner.weights()
            sampler.load(sent)
            lent.prove(sent.manifest)
            made = [one.sample(task(version=step - 1, step=step)) for one in (sampler, lent)]
            assert torch.equal(made[0][0].predictions, made[1][0].predictions)
            update = learner.update(step, [(step - 1, made[0][0], ADVANTAGES)])
            assert update.first_log_ratio <= FIRST_RATIO_LIMIT and update.gradient_norm > 0
            learner.save(folder / f"step-00000{step}", DriverState(step=step))
            assert learner.restore(folder / f"step-00000{step}").step == step
        state = [value for value in optimizers.state_tensors(learner.optimizer) if value.ndim]
        network = [*learner.policy.denoiser.module.parameters()]
        parts = [part_here(part.detach()) for part in (*network, *learner.ema.values, *state)]
        assert state and {part.device.type for part in parts} == {"cpu"}
        assert all(part.is_pinned() == (device == GPU) for part in parts[: len(network)])
        assert learner.weights(averaged=True).manifest.checksum != learner.weights().manifest.checksum
    finally:
        torch.distributed.destroy_process_group()
