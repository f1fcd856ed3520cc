"""What roles and object stores are planned to hold is what they are then seen to hold."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch

from pcpo_ray.commands.bench import published
from pcpo_ray.commands.plan import roles, sizes
from pcpo_ray.commands.plan.gpus import CONTEXT, SLACK
from pcpo_ray.config import files
from pcpo_ray.data.types import Handle, Rollout
from pcpo_ray.data.weights import layout
from pcpo_ray.training.counters import Counters
from pcpo_ray.workers.learner import autotune, micro_batches, mini_batches
from pcpo_ray.workers.learner.distributed import Rank
from pcpo_ray.workers.learner.learner import ALONE, Learner
from pcpo_ray.workers.learner.movement import Movement
from pcpo_ray.workers.packing import pack_trajectory
from pcpo_ray.workers.sampler import Sampler
from tests.support import ROOT, measured, small
from tests.support.part import MORE
from tests.support.trajectories import TRAJECTORIES, batch, pair, trajectory

CPU = torch.device("cpu")

PARTS = [
    ("small_sd3", {"sampling__subset": "{kind: share, share: 0.6}"}),
    ("small_sd", {"sampling__subset": "{kind: share, share: 0.4}", "credit__kind": "interpolate"}),
    ("small_flux", {"sampling__subset": "{kind: window, size: 2, order: random}"}),
]


def sent(run, step=1):
    """What is sent of a group, its trajectory as it was sampled, and its images."""
    sampler = Sampler(run, CPU)
    for parameter in sampler.policy.denoiser.trainable().values():
        parameter.data.add_(0.1)
    asked = dataclasses.replace(measured.task_of(run), step=step)
    trajectory, images = sampler.sample(asked)
    return pack_trajectory(sampler.policy, asked, trajectory), trajectory, images


@pytest.mark.parametrize(("fixture", "changes"), TRAJECTORIES)
def test_a_groups_bytes_are_the_sampled_ones_exactly(request, fixture, changes):
    run = small.run(request.getfixturevalue(fixture), **changes)
    packed, trajectory, images = sent(run)
    assert sizes.trajectory_of(run) == packed.bytes
    assert sizes.opened_of(run) == trajectory.bytes
    assert sizes.images_of(run, run.rollout.images) == images.nbytes


@pytest.mark.parametrize(("fixture", "changes"), PARTS)
def test_of_a_part_of_the_steps_the_most_is_planned_that_a_batch_has(request, fixture, changes):
    run = small.run(request.getfixturevalue(fixture), **changes, sampling__steps=6)
    found = [sent(run, step)[0].bytes for step in range(1, 9)]
    assert max(found) == sizes.trajectory_of(run)
    assert min(found) < max(found)


def test_512_flux_samples_and_a_batch_ahead_fit_8_gb_of_object_store(tmp_path):
    """16 x 64 x 64 latents, 16 steps of which 15 are trained; the weights are an adapter of rank 128."""
    recipe = files.load(ROOT / "configs" / "flux_pcpo_hpsv21.yaml")
    model = dataclasses.replace(recipe.model, path=str(published.flux(tmp_path / "flux")), dtype="bfloat16")
    sampling = dataclasses.replace(recipe.sampling, height=512, width=512, subset=None)
    rollout = dataclasses.replace(recipe.rollout, prompts=32, images=16, max_staleness=1)
    run = dataclasses.replace(recipe, model=model, sampling=sampling, rollout=rollout)
    assert (sizes.hollow_of(run).latents, sizes.trained_steps(run)) == (4 * 16 * 64 * 64, 15)
    predictions = 16 * 15 * 16 * 64 * 64 * 2
    assert predictions < sizes.trajectory_of(run) < 1.2 * predictions  # a tenth and more is the text's
    assert roles.store(run).needed < 8e9


@pytest.mark.parametrize("staleness", [0, 1])
def test_what_waits_to_be_learned_comes_to_the_stores_bytes_and_no_higher(small_sd, staleness):
    run = small.run(small_sd, rollout__max_staleness=staleness)
    planned, tally = roles.store(run), Counters()
    packed, _, images = sent(run)
    for step in range(1, staleness + 2):
        for position in range(run.rollout.prompts):
            task = dataclasses.replace(measured.task_of(run, position), step=step)
            handle = Handle(reference=None)
            size = packed.bytes + images.nbytes
            rollout = Rollout(
                task=task, trajectory=handle, images=handle, bytes=size, checksum="", seconds=0.0, worker="a"
            )
            tally.sampled(rollout, 0.0)
    assert tally.step(0, [])["buffer_bytes"] == planned.groups
    assert planned.groups == (staleness + 1) * 3 * (planned.trajectory + planned.images)


@pytest.mark.parametrize(
    ("fixture", "changes"),
    [
        ("small_sd", {}),
        ("small_sdxl", {"model__train": "{kind: full}", "optimizer__average": 0.9}),
        ("small_flux", {"model__dtype": "bfloat16", "model__train": "{kind: full}", "optimizer__average": 0.9}),
        ("small_sd3", {"model__train": "{kind: lora, rank: 8}"}),
    ],
)
def test_weights_gradients_and_moments_are_the_learners_exactly(request, fixture, changes):
    run = small.run(request.getfixturevalue(fixture), **changes, rollout__prompts=1)
    _, (trajectory, _) = measured.sample(run)
    learner, held = Learner(run, CPU), roles.learner(run).held
    optimizer_step, gradients = learner.optimizer.step, []

    def step():
        gradients.append(sum(p.grad.nbytes for p in learner.masters.values.values() if p.grad is not None))
        optimizer_step()

    learner.optimizer.step = step
    learner.update(1, [(0, trajectory, [1.0, -1.0, 0.5, -0.5])])
    trained = sum(p.nbytes for p in learner.parameters.values())
    network = sum(p.nbytes for p in (*learner.policy.denoiser.module.parameters(),))
    buffers = sum(b.nbytes for b in learner.policy.denoiser.module.buffers())
    assert held["trained weights"] == trained == sum(layout(learner.parameters)[1])
    assert held["denoising network, frozen"] == network + buffers - trained
    masters = [m for name, m in learner.masters.values.items() if m is not learner.parameters[name]]
    assert held.get("their float32 masters", 0) == sum(master.nbytes for master in masters)
    assert held["gradients"] == gradients[0]
    sampled = Movement(learner.masters.values.values(), ALONE).before
    assert held["weights before the update, sampled"] == pytest.approx(sum(s.nbytes for s in sampled), rel=0.05)
    assert held["AdamW's two moments"] == sum(v.nbytes for s in learner.optimizer.state.values() for v in s.values())
    assert held["a group's trajectory"] == trajectory.bytes
    if learner.ema is not None:
        assert held["running mean of the weights"] == sum(value.nbytes for value in learner.ema.values)


def wide(folder):
    """A Stable Diffusion whose UNet has weights enough to be seen: some 30 million."""
    from diffusers import UNet2DConditionModel

    small.stable_diffusion(folder, levels=2)
    settings = {**UNet2DConditionModel.load_config(folder / "unet"), "block_out_channels": (192, 384)}
    UNet2DConditionModel.from_config({**settings, "attention_head_dim": 64}).save_pretrained(folder / "unet")
    return folder


def embedded(name, **changes):
    """A config of the embedded models with batches large enough to be seen."""
    settings = {"rollout.images": 80, "rollout.prompts": 1, "sampling.steps": 3, "sampling.trained_steps": 2, **changes}
    settings["optimizer.minibatches"] = 1
    return files.load(ROOT / "configs" / f"{name}.yaml", [f"{key}={value}" for key, value in settings.items()])


SEEN = {
    "activations": lambda folder: embedded("shapes_pcpo", **{"sampling.guidance_scale": 2}),
    "all of a transformer trained": lambda folder: embedded(
        "shapes_pcpo_flux", **{"model.train": "{kind: full}", "optimizer.average": 0.9}
    ),
    "weights, gradients and moments": lambda folder: small.run(
        wide(folder / "small-sd-wide"), model__train="{kind: full}", rollout__prompts=1
    ),
}


@pytest.mark.chaos  # for the minute that it takes
@pytest.mark.parametrize("most", [pytest.param(one, marks=() if "gradients" in one else MORE) for one in SEEN])
def test_processes_grow_by_what_was_planned_within_a_fifth(tmp_path, most):
    """Resident memory of a process in which a role works as its actor does, on the CPU, against the role's total.

    glibc is told to give back what is freed (blocks from 128 KiB on): what it keeps otherwise is no need of the role's.
    """
    run = SEEN[most](tmp_path)
    path = tmp_path / "run.yaml"
    path.write_text(files.dump(run))
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**17), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.measured", str(path)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    for role in (roles.sampler, roles.learner):
        planned = role(run)
        assert planned.total > 64 * 2**20, "too little to be told from what else a process does"
        assert seen[planned.role] == pytest.approx(planned.total, rel=0.2), planned


@pytest.mark.parametrize(("sampled", "images"), [(None, 2), (1, 2), (2, 2), (4, 6), (3, 7)])
@pytest.mark.parametrize("size", [1, 2, 4, 6, 8, 16, 40, 512])
def test_a_pass_has_the_pairs_and_is_of_the_groups_that_are_planned(small_sd, sampled, images, size):
    sampling = {"sampling__batch": "null" if sampled is None else sampled, "sampling__trained_steps": 3}
    run = small.run(small_sd, **sampling, rollout__images=images, rollout__prompts=16)
    shapes = {name: torch.zeros(images, 3, 4, 5) for name in ("latents", "predictions", "noises")}
    group = trajectory(**shapes, log_probs=torch.zeros(images, 3))
    length = min(images, sampled or images, size)
    blocks = mini_batches.cut_into_blocks(dict.fromkeys(range(16), (images, 3)), length)
    found = micro_batches.passes(blocks, dict.fromkeys(range(16), group), micro_batches.blocks_per_pass(length, size))
    groups = max(len({block.place for block in blocks}) for blocks in found)
    assert sizes.pass_of(run, size) == (max(sum(map(len, blocks)) for blocks in found), groups)
    half = small.run(small_sd, **sampling, rollout__images=images, rollout__prompts=16, optimizer__minibatches=2)
    assert sizes.pass_of(half, size)[1] <= 8


@pytest.mark.parametrize(
    ("own", "models"),
    [
        ("{steps: 9}", 1),  # what an evaluation holds is as in training, so one model stands for both
        ("{steps: 9, guidance_scale: 1.0}", 2),
        ("{guidance_scale: 3.0}", 2),
    ],
)
def test_an_evaluation_with_its_own_sampling_is_planned(small_sd, own, models):
    sampled = {"sampling__guidance_scale": 2.0, "sampling__detach_unconditional": "true"}
    sizes.hollow.cache_clear()
    planned = roles.sampler(small.run(small_sd, **sampled, evaluation__sampling=own))
    assert sizes.hollow.cache_info().currsize == models
    (phase,) = (size for name, size in planned.phases.items() if name.startswith("an evaluation's prediction"))
    assert phase > 0


def test_a_larger_micro_batch_adds_copies_of_its_pairs_and_their_groups(small_sd):
    alone, more, most = (roles.learner(small.run(small_sd, optimizer__micro_batch=n)) for n in ("null", 8, 32))
    assert more.held == alone.held  # two steps of a group's
    assert most.held["2 groups' trajectories"] == 2 * alone.held["a group's trajectory"]
    passing = [
        role.phases[f"forward and backward, {n} (image, step) pairs at once"]
        for role, n in zip((alone, more, most), (4, 8, 32), strict=True)
    ]
    run = small.run(small_sd)
    assert passing[1] - sizes.pairs_of(run, 8) > 1.5 * passing[0]
    assert passing[2] - sizes.pairs_of(run, 32) == pytest.approx(4 * (passing[1] - sizes.pairs_of(run, 8)), rel=0.2)


@pytest.mark.parametrize(
    ("prompts", "updates", "ranks", "most"), [(3, 1, 1, 16), (3, 2, 1, 16), (3, 2, 2, 8), (9, 1, 1, 32)]
)
def test_auto_on_a_cpu_is_planned_with_the_most_pairs_that_it_tries(
    small_sd, monkeypatch, prompts, updates, ranks, most
):
    """Doubles of the sampler's 4 images, of the 8 (image, step) pairs of each group of a rank's minibatch."""
    sampling = {"sampling__trained_steps": 2, "rollout__images": 4, "optimizer__micro_batch": "auto"}
    batch = {"rollout__prompts": prompts, "optimizer__minibatches": updates}
    run = small.run(small_sd, **sampling, **batch, workers__learner=f"{{ranks: {ranks}}}")
    tried = []

    def measured(sizes, *rest):
        tried.extend(sizes)
        return torch.ones(len(sizes), dtype=torch.float64)

    monkeypatch.setattr(autotune, "measure", measured)
    monkeypatch.setattr(Rank, "total", lambda rank, tensor: tensor)  # the other rank is not there
    learner = Learner(run, CPU, Rank(index=0, count=ranks))
    shapes = {name: torch.zeros(4, 2, 4, 5) for name in ("latents", "predictions", "noises")}
    group = trajectory(**shapes, log_probs=torch.zeros(4, 2), steps=torch.tensor([0, 1]))
    groups = [(0, group, [0.0] * 4)] * prompts
    blocks = learner.loader.blocks(groups, mini_batches.split_groups(run.optimizer, prompts, seed=0, step=1)[0])
    learner.autotune(groups, blocks, mini_batches.rank_share(blocks, 0, ranks))
    assert sizes.micro_batch_of(run) == tried[-1] == most
    on_a_gpu = small.run(small_sd, **sampling, **batch, workers__learner=f"{{ranks: {ranks}, gpus: 1}}")
    assert sizes.micro_batch_of(on_a_gpu) == 4  # its memory ends it


@pytest.mark.parametrize(
    "changes", [{"optimizer__minibatches": 3}, {"optimizer__minibatches": 2, "optimizer__epochs": 2}]
)
def test_old_predictions_take_what_the_learner_keeps_of_them(small_flux, monkeypatch, changes):
    sampler, learner = pair(small_flux, **changes, objective__old_predictions="recomputed")
    groups, seen, of_pass = batch(sampler, learner, count=3), [], learner.loss.of_pass

    def noted(*arguments, old, **more):
        seen.append(old)
        return of_pass(*arguments, old=old, **more)

    monkeypatch.setattr(learner.loss, "of_pass", noted)
    learner.update(1, groups)
    kept = sum(one.nbytes for one in seen[0].kept.values())
    assert kept == sizes.old_predictions_of(learner.run) == roles.learner(learner.run).held["old predictions"] > 0
    on_a_gpu = small.run(small_flux, **changes, objective__old_predictions="recomputed", workers__learner="{gpus: 1}")
    assert roles.learner(on_a_gpu).beside["old predictions"] == kept
    assert "old predictions" not in roles.learner(small.run(small_flux, **changes)).held


def test_ranks_share_what_fsdp2_cuts_and_copy_what_ddp_does(small_flux):
    settings = {"model__train": "{kind: full}", "rollout__prompts": 4}
    alone, ddp, fsdp2 = (
        roles.learner(small.run(small_flux, **settings, workers__learner=text))
        for text in ("{}", "{ranks: 2, strategy: ddp}", "{ranks: 2, strategy: fsdp2}")
    )
    for name in ("trained weights", "gradients"):
        assert alone.held[name] == ddp.held[name] == 2 * fsdp2.held[name]
    assert "adding up the ranks' gradients" in ddp.phases
    passes = [max(memory.phases.values()) for memory in (alone, fsdp2)]
    assert passes[1] > passes[0]


def test_gathered_layers_are_those_of_the_blocks_that_are_cut():
    class Block(torch.nn.Module):
        def __init__(self, size):
            super().__init__()
            self.layer = torch.nn.Linear(size, size, bias=False)

    class Network(torch.nn.Module):
        _no_split_modules = ("Block",)

        def __init__(self):
            super().__init__()
            self.first = torch.nn.Linear(10, 10, bias=False)
            self.blocks = torch.nn.ModuleList([Block(30), Block(20)])

    network = Network()
    root, large = 4 * 10 * 10, 4 * 30 * 30
    assert roles.gathered(network) == (root + large) + 2 * large + 2 * large
    network.requires_grad_(False)
    assert roles.gathered(network) == (root + large) + 2 * large


def test_a_gpu_role_keeps_there_only_what_it_computes_with(small_sd):
    gpu = {"workers__samplers": "{gpus: 1}", "workers__learner": "{gpus: 0.5}", "workers__scorers": "{gpus: 0.5}"}
    run = small.run(small_sd, **gpu, rewards="[{kind: clip_score}]")
    for role in (roles.sampler, roles.learner, roles.scorer):
        there, here = role(run), role(small.run(small_sd, rewards="[{kind: clip_score}]"))
        assert there.beside and not here.beside
        assert there.total == pytest.approx(
            (1 + SLACK) * (sum(there.held.values()) + max(there.phases.values())) + CONTEXT
        )
        assert there.total > CONTEXT > here.total


def test_rewards_take_what_their_networks_do(small_sd):
    rewards = "[{kind: clip_score}, {kind: jpeg_compressibility}, {kind: 'tests.support.small:Slow'}]"
    run = small.run(small_sd, rewards=rewards, evaluation__rewards="[{kind: diversity, model: shapes-clip}]")
    import open_clip

    from pcpo_ray import shapes

    network = open_clip.create_model(f"local-dir:{shapes.checkpoint('shapes-clip')}", load_weights=False)
    memory = roles.scorer(run)
    size = sum(t.nbytes for t in (*network.parameters(), *network.buffers()))
    assert memory.held["shapes-clip"] == size  # once, though two rewards use it
    assert len(memory.phases) == 1
