"""What `workers.park` and `workers.learner.offload` move from GPUs to host memory is planned there."""

import pytest
import torch
from rich.console import Console

from pcpo_ray.commands import plan
from pcpo_ray.commands.plan import page, roles
from pcpo_ray.commands.plan.gpus import SLACK
from pcpo_ray.workers.learner.learner import Learner
from tests.support import measured, small
from tests.support.two_places import two_places

CPU = torch.device("cpu")
PARKED = {"optimizer__average": 0.9, "workers__samplers": "{gpus: 1}", "workers__scorers": "{gpus: 1}"}


@pytest.mark.parametrize("train", ["{kind: lora, rank: 2, alpha: 2}", "{kind: full}"])
def test_a_parked_state_is_planned_beside_and_in_the_step_alone(small_sd, monkeypatch, train):
    changes = {**PARKED, "model__train": train, "rollout__prompts": 1}
    on_a_gpu = {**changes, "workers__learner": "{gpus: 1}"}
    there, parked = (roles.learner(small.run(small_sd, **on_a_gpu, workers__park=park)) for park in ("false", "true"))
    two_places(monkeypatch)
    run = small.run(small_sd, **changes, workers__park="true")
    _, (trajectory, _) = measured.sample(run)
    learner = Learner(run, CPU)
    learner.update(1, [(0, trajectory, [1.0, -1.0, 0.5, -0.5])])
    asleep = sum(home.nbytes for home in learner.resting.homes.values())
    vae = sum(home.nbytes for home in learner.policy.vae.homes.values())
    step = "the optimizer's step"
    assert parked.phases[step] - there.phases[step] == asleep
    assert sum(there.held.values()) - sum(parked.held.values()) == asleep + vae
    names = ("AdamW's two moments", "running mean of the weights", "vae")
    host = [parked.beside[f"{name}, parked"] for name in names]
    homes = [home for home in learner.resting.homes.values() if home.ndim]  # the step's count is on the CPU anyway
    homes += learner.policy.vae.homes.values()
    assert sum(host) == sum(1 << (home.nbytes - 1).bit_length() for home in homes)
    assert not {*names} & {*parked.held} and parked.beside.items() >= there.beside.items()


def test_a_parked_vae_is_on_the_device_while_it_decodes(small_sd):
    there, parked = (roles.sampler(small.run(small_sd, **PARKED, workers__park=park)) for park in ("false", "true"))
    (decoding,) = (name for name in there.phases if name.startswith("decoding"))
    assert parked.phases[decoding] - there.phases[decoding] == there.held["vae"] > 0
    assert {name: size for name, size in parked.phases.items() if name != decoding}.items() <= there.phases.items()
    assert "vae" not in parked.held and parked.beside.keys() - there.beside.keys() == {"vae, parked"}
    lends = roles.learner(small.run(small_sd, workers__learner="{gpus: 1, samples: true}", workers__park="true"))
    assert lends.phases[f"sampling: {decoding}"] >= parked.phases[decoding]


def test_of_parked_reward_models_one_is_on_the_device_at_a_time(small_sd):
    rewards = {
        "rewards": "[{kind: clip_score}]",
        "evaluation__rewards": "[{kind: 'hps_v2.1', weights: hps.pt, architecture: ViT-B-32}]",
    }
    runs = (small.run(small_sd, **PARKED, **rewards, workers__park=park) for park in ("false", "true"))
    there, parked = map(roles.scorer, runs)
    sizes = there.held.values()
    assert len(sizes) == 2 and not parked.held
    for name, size in there.held.items():
        phase = f"embedding with {name}"
        assert parked.phases[phase] - there.phases[phase] == size <= parked.beside[f"{name}, parked"] < 2 * size
    assert there.total - parked.total == pytest.approx((1 + SLACK) * min(sizes), abs=1)


def test_on_cpus_nothing_is_parked_and_the_page_says_so(small_sd, capsys):
    run = small.run(small_sd, workers__samplers="{gpus: 1}", optimizer__average=0.9)
    asked = small.run(small_sd, workers__samplers="{gpus: 1}", optimizer__average=0.9, workers__park="true")
    assert roles.learner(asked) == roles.learner(run) and roles.scorer(asked) == roles.scorer(run)
    page.show(plan.plan(asked), Console(width=200))
    assert "workers.park moves nothing on a CPU, and so not here: scorer, learner" in capsys.readouterr().out


@pytest.mark.parametrize("train", ["{kind: lora, rank: 2, alpha: 2}", "{kind: full}"])
def test_offloaded_parts_are_planned_in_host_memory(small_flux, train):
    settings = {"model__train": train, "model__dtype": "bfloat16", "optimizer__average": 0.9, "rollout__prompts": 4}
    role = "ranks: 2, strategy: fsdp2, gpus: 1"
    there, offloaded = (
        roles.learner(small.run(small_flux, **settings, workers__learner=f"{{{role}, offload: {offload}}}"))
        for offload in ("false", "true")
    )
    whole = "full" not in train  # an adapter's gradients are added up whole on the GPU
    gone = there.held.keys() - offloaded.held.keys()
    assert gone == {
        "denoising network, frozen", "trained weights", "AdamW's two moments", "running mean of the weights",
        "weights before the update, sampled", *([] if whole else ["gradients"]),
    }  # fmt: skip
    assert {"the optimizer's step", "sending the running mean"} == there.phases.keys() - offloaded.phases.keys()
    for name in ("AdamW's two moments", "running mean of the weights", "weights before the update, sampled"):
        assert offloaded.beside[name] == there.held[name]
    for name in ("denoising network, frozen", "trained weights"):
        assert there.held[name] <= offloaded.beside[f"{name}, offloaded"] < 2 * there.held[name] + 2**16
    assert offloaded.total < there.total
