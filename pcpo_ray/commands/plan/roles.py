"""Memory of a run's processes by role, and of its object stores, from its config."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from pcpo_ray import config
from pcpo_ray.commands.plan import scoring, sizes
from pcpo_ray.commands.plan.gpus import CONTEXT, SLACK
from pcpo_ray.commands.plan.hollow import Hollow, size_of, size_of_module
from pcpo_ray.config import ROLLOUT_STORE_FRACTION, Full, Run
from pcpo_ray.models.texts import KEPT
from pcpo_ray.workers.learner import optimizers
from pcpo_ray.workers.learner.movement import SAMPLED


@dataclass(frozen=True, kw_only=True)
class Memory:
    """The bytes of one process, on the device of its tensors: `held` always, `phases` one at a time.

    `beside` is what a process with a GPU also holds in the machine's main memory.
    """

    role: str
    processes: int
    gpus: float
    held: Mapping[str, int]
    phases: Mapping[str, int]
    beside: Mapping[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """The largest number of bytes at any time."""
        tensors = sum(self.held.values()) + max(self.phases.values(), default=0)
        return round(tensors * (1 + SLACK) + CONTEXT) if self.gpus else tensors

    @property
    def busiest(self) -> str:
        """The phase that takes the most memory."""
        return max(self.phases, key=lambda phase: self.phases[phase], default="")


@dataclass(frozen=True, kw_only=True)
class Store:
    """The bytes of all object stores together: untrained groups, and everything else."""

    groups: int
    trajectory: int
    """Bytes of one group's packed trajectory."""
    images: int
    """Bytes of one group's images."""
    others: Mapping[str, int]

    @property
    def total(self) -> int:
        return self.groups + sum(self.others.values())

    @property
    def needed(self) -> int:
        """Bytes the stores must have so that no batch waits for memory that rollout.max_staleness would allow."""
        return max(self.total, math.ceil(self.groups / ROLLOUT_STORE_FRACTION))


def store(run: Run) -> Store:
    """Return what the object stores hold at most."""
    trajectory, decoded = sizes.trajectory_of(run), sizes.images_of(run, run.rollout.images)
    trained = size_of(*sizes.hollow_of(run).trained.values())
    versions = run.rollout.max_staleness + 2  # one that a sampler still asks for each, and the one that comes
    prompts = run.evaluation.count + run.evaluation.train_count
    evaluated = prompts * sizes.images_of(run, run.evaluation.images)
    return Store(
        groups=(run.rollout.max_staleness + 1) * run.rollout.prompts * (trajectory + decoded),
        trajectory=trajectory,
        images=decoded,
        others={
            f"{versions} versions of the weights": versions * trained,
            **({} if run.optimizer.average is None else {"their running mean": trained}),
            f"an evaluation's {prompts * run.evaluation.images} images": evaluated,
        },
    )


def learner(run: Run) -> Memory:
    """Return the memory of one learner rank."""
    model, role = sizes.hollow_of(run), run.workers.learner
    gpu = role.gpus > 0
    rows, together = sizes.pass_of(run, sizes.micro_batch_of(run))
    sharded = role.strategy == "fsdp2" and role.ranks > 1
    parts = role.ranks if sharded else 1
    trained = size_of(*model.trained.values())
    frozen = size_of_module(model.network) - trained
    precise = sizes.FLOAT * sum(p.numel() for p in model.trained.values())
    copied_masters = sizes.FLOAT * sum(p.numel() for p in model.trained.values() if p.dtype is not torch.float32)
    remembered = sizes.FLOAT * sum(min(p.numel() // parts, SAMPLED) for p in model.trained.values())
    moments = optimizers.state_bytes(run.optimizer, [p.numel() for p in model.trained.values()]) // parts
    pass_ = model.learning(rows, mixed=run.optimizer.mixed_precision == "bf16", kl=run.objective.kl > 0, gpu=gpu)
    opened, noise = {"a group's trajectory": sizes.opened_of(run)}, sizes.noise_of(run)
    if together > 1:
        opened = {f"{together} groups' trajectories": together * sizes.opened_of(run)}
    copied = sizes.pairs_of(run, rows) if rows > sizes.rows_of(run) else rows * size_of(*model.encoded[0].values())
    sent = {"the weights that it sent last": trained}
    if old := sizes.old_predictions_of(run):
        sent |= {"old predictions": old}
    full = isinstance(run.model.train, Full)
    encoders = sum(size_of_module(part) for name, part in model.parts.items() if name in model.denoiser.encoders)
    largest = sizes.FLOAT * max(p.numel() for p in model.trained.values())
    sampled = lent(run, sharded=sharded, gpu=gpu)
    return Memory(
        role="learner",
        processes=role.ranks,
        gpus=role.gpus,
        held={
            "denoising network, frozen": frozen // parts,
            "trained weights": (precise if sharded else trained) // parts,
            **({"their float32 masters": copied_masters} if copied_masters and not sharded else {}),
            "gradients": precise // parts if full else precise,  # an adapter's are reduced once an optimizer step
            ("AdamW's two moments" if run.optimizer.kind == "adamw" else f"moments of {run.optimizer.kind}"): moments,
            "weights before the update, sampled": remembered,
            **({} if run.optimizer.average is None else {"running mean of the weights": precise // parts}),
            **_other_parts(model),
            **opened,
            **({} if gpu else {**sent, **sampled.host}),
        },
        phases={
            **sampled.phases,
            **({} if gpu else {"drawing a group's noise": noise}),
            f"forward and backward, {rows} (image, step) pairs at once": pass_
            + copied
            + (gathered(model.network) if sharded else 0),
            "the optimizer's step": precise // parts
            if gpu
            else 3 * largest,  # one parameter after the other on the CPU
            **({} if run.optimizer.average is None else {"sending the running mean": precise // parts}),
            **({"adding up the ranks' gradients": 2 * precise} if role.ranks > 1 and not sharded else {}),
            **({"text encoders, while a checkpoint is written": encoders} if full else {}),
        },
        beside={**sent, **opened, "a group's noise": noise, **sizes.pinned(sizes.opened_of(run)), **sampled.beside}
        if gpu
        else {},
    )


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Bytes that sampling takes beside the network: `host` in main memory, `phases` on the device, one at a time."""

    host: Mapping[str, int]
    phases: Mapping[str, int]
    beside: Mapping[str, int]
    """The bytes that a process with a GPU also holds in main memory, `host` included."""


def sampler(run: Run) -> Memory:
    """Return the memory of one sampler."""
    model, role = sizes.hollow_of(run), run.workers.samplers
    gpu = role.gpus > 0
    taken = sampling(run, gpu=gpu)
    return Memory(
        role="sampler",
        processes=max(role.workers, role.max or 0),
        gpus=role.gpus,
        held={
            "denoising network": size_of_module(model.network),
            **_other_parts(model),
            **({} if gpu else taken.host),
        },
        phases=taken.phases,
        beside=taken.beside if gpu else {},
    )


def sampling(run: Run, *, gpu: bool) -> Sampling:
    """Return what sampling takes of a process that holds the network."""
    model = sizes.hollow_of(run)
    rows, steps = sizes.rows_of(run), sizes.trained_steps(run)
    images, decoded = run.rollout.images, max(run.rollout.images, run.evaluation.images)
    trajectory, shown = sizes.opened_of(run), sizes.images_of(run, decoded)
    encoders = sum(size_of_module(part) for name, part in model.parts.items() if name in model.denoiser.encoders)
    evaluated, noises = evaluating(run, gpu=gpu), max(sizes.noise_of(run), sizes.evaluation_noise_of(run))
    conditioning, encoding = model.encoded
    kept = images * steps * model.latents * (3 if gpu else 2)  # on the CPU a step's noise is a part of all noise
    kept += images * size_of(*conditioning.values())
    distinct = run.steps * run.rollout.prompts
    texts = min(KEPT, distinct * size_of(*conditioning.values()))
    predicting = model.predicting(rows, mixed=run.optimizer.mixed_precision == "bf16", gpu=gpu)
    host = {
        "text encoders, once they were needed": encoders,
        "encoded texts, were all distinct": texts,
        "noise": noises,
    }
    return Sampling(
        host=host,
        phases={
            "encoding a text": encoding + (encoders if gpu else 0),
            f"a prediction, {rows} {'image' if rows == 1 else 'images'} at once": kept + predicting,
            **evaluated,
            f"decoding {decoded} images": kept + model.decoding(decoded, gpu=gpu),
            "putting the trajectory together": kept + trajectory,
        },
        beside={**host, "a group's trajectory and images": trajectory + shown, **sizes.pinned(noises)},
    )


def lent(run: Run, *, sharded: bool, gpu: bool) -> Sampling:
    """Return what sampling takes of a learner's rank; nothing of one that only learns (workers.learner.samples)."""
    if not run.workers.learner.samples:
        return Sampling(host={}, phases={}, beside={})
    model, taken = sizes.hollow_of(run), sampling(run, gpu=gpu)
    ranks = run.workers.learner.ranks
    joined = size_of_module(model.network) * (ranks - 1) // ranks if sharded else 0
    trained = size_of(*model.trained.values())
    aside = trained if run.optimizer.average is not None or run.rollout.max_staleness else 0
    more = joined + aside  # the other ranks' parts; its own weights, while an EMA or an older version is sampled with
    return Sampling(
        host=taken.host,
        phases={f"sampling: {name}": size + more for name, size in taken.phases.items()},
        beside={f"sampling: {name}": size for name, size in taken.beside.items()},
    )


def one_process(run: Run) -> Memory:
    """Return the memory of the process of a run with --local: a learner that samples, and a scorer, in turns."""
    samples = replace(run.workers.learner, samples=True)
    found = (scorer(run), learner(replace(run, workers=replace(run.workers, learner=samples))))

    def named(part: str) -> dict[str, int]:
        return {f"{one.role}: {name}": size for one in found for name, size in getattr(one, part).items()}

    gpus = 1.0 if any(one.gpus for one in found) else 0.0
    return Memory(
        role="one process", processes=1, gpus=gpus, held=named("held"), phases=named("phases"), beside=named("beside")
    )


def evaluating(run: Run, *, gpu: bool) -> dict[str, int]:
    """Return the phase of an evaluation with its own sampling; nothing if it samples as training does."""
    if run.evaluation.sampling is None:
        return {}
    model = sizes.hollow_of(run, _as_trained(run))
    images = max(run.rollout.images, run.evaluation.images)  # evaluation.tasks fills a group
    rows = run.sampling.together(images)
    texts = images * size_of(*model.encoded[0].values())
    predicting = model.predicting(rows, mixed=run.optimizer.mixed_precision == "bf16", gpu=gpu)
    name = f"an evaluation's prediction, {rows} {'image' if rows == 1 else 'images'} at once"
    return {name: texts + 2 * images * model.latents + predicting}


def _as_trained(run: Run) -> config.Sampling:
    """Return the sampling of evaluations with what does not change a prediction's size as in training.

    Where nothing is left that differs, one model stands for both.
    """
    own, trained = run.evaluated, run.sampling
    detached = trained.detach_unconditional and own.guidance_scale > 1
    return replace(own, steps=trained.steps, detach_unconditional=detached)


def scorer(run: Run) -> Memory:
    """Return the memory of one scorer: the trained rewards and those of evaluations."""
    role = run.workers.scorers
    gpu = role.gpus > 0
    rewards = (*run.rewards, *run.evaluation.rewards)
    images = max(run.rollout.images, run.evaluation.images)
    measured = {name: scoring.measure(found, images, gpu) for name, found in scoring.clips(rewards).items()}
    scored = {"a group's images": sizes.images_of(run, images)}
    return Memory(
        role="scorer",
        processes=max(role.workers, role.max or 0),
        gpus=role.gpus,
        held={
            **{name: size for name, (size, _) in measured.items()},
            **scoring.heads(rewards),
            **({} if gpu else scored),
        },
        phases={f"embedding with {name}": peak for name, (_, peak) in measured.items()},
        beside=scored if gpu else {},
    )


def gathered(network: nn.Module) -> int:
    """Return the bytes that fsdp2 has unsharded at once, at most, in a network cut as sharding.shard cuts it.

    These are the root's own parameters, and those of a block and the blocks around it. The block being prefetched adds
    its parameters and the buffer they arrive in; the one being reduced adds gradients and their float32 buffer.
    """
    names = set(getattr(network, "_no_split_modules", None) or ())
    blocks = [name for name, module in network.named_modules() if name and type(module).__name__ in names]
    own, leaving = dict.fromkeys(["", *blocks], 0), dict.fromkeys(["", *blocks], 0)

    def around(name: str) -> list[str]:
        return [block for block in own if not block or name == block or name.startswith(f"{block}.")]

    for name, parameter in network.named_parameters():
        block = max(around(name), key=len)
        own[block] += parameter.nbytes
        if parameter.requires_grad:
            leaving[block] += parameter.nbytes + sizes.FLOAT * parameter.numel()
    chains = [sum(own[block] for block in around(name)) for name in own]
    return max(chains) + 2 * max(own.values()) + max(leaving.values())


def _other_parts(model: Hollow) -> dict[str, int]:
    """Return the pipeline's networks that stay loaded beside the denoiser."""
    others = {name: part for name, part in model.parts.items() if name not in model.denoiser.encoders}
    return {name: size_of_module(part) for name, part in others.items() if part is not model.network}
