"""Memory of a run's processes by role, and of its object stores, from its config."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from pcpo_ray.commands.plan import scoring, sizes
from pcpo_ray.commands.plan.gpus import CONTEXT, SLACK
from pcpo_ray.commands.plan.hollow import Hollow, size_of, size_of_module
from pcpo_ray.commands.plan.sampling import lent, other_parts, sampling
from pcpo_ray.config import ROLLOUT_STORE_FRACTION, Full, Run
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
    parked = gpu and run.workers.park
    rows, together = sizes.pass_of(run, sizes.micro_batch_of(run))
    sharded = role.strategy == "fsdp2" and role.ranks > 1
    offloaded = gpu and sharded and role.offload
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
    loaded = gpu and role.samples  # by a rank that samples, to encode texts
    saving = {"text encoders, while a checkpoint is written": encoders} if full and not loaded else {}
    largest = sizes.FLOAT * max(p.numel() for p in model.trained.values())
    sampled, (others, vae) = lent(run, sharded=sharded, gpu=gpu), other_parts(model, parked=parked)
    network = {
        "denoising network, frozen": frozen // parts,
        "trained weights": (precise if sharded else trained) // parts,
        **({"their float32 masters": copied_masters} if copied_masters and not sharded else {}),
    }
    gradients = {"gradients": precise // parts if full else precise}  # an adapter's are reduced once an optimizer step
    mean = {} if run.optimizer.average is None else {"running mean of the weights": precise // parts}
    state = {"AdamW's two moments" if run.optimizer.kind == "adamw" else f"moments of {run.optimizer.kind}": moments}
    before = {"weights before the update, sampled": remembered}
    on_cpu = not gpu or offloaded  # there one parameter after the other
    stepping = {"the optimizer's step": 3 * largest // parts if on_cpu else precise // parts}
    sending = {} if run.optimizer.average is None else {"sending the running mean": precise // parts}
    if offloaded:
        held, phases = {} if full else gradients, {}
        host = {**_pinned_parts(model, parts), "gradients": precise // parts, **state, **mean, **before}
        host |= {**stepping, **sending}
    elif parked:
        held = {**network, **gradients, **before}
        host = {**_pinned_state(state, model, parts, tensors=2), **_pinned_state(mean, model, parts, tensors=1)}
        phases = {"the optimizer's step": sum((*stepping.values(), *state.values(), *mean.values())), **sending}
    else:
        held, host, phases = {**network, **gradients, **state, **mean, **before}, {}, {**stepping, **sending}
    passing = pass_ + copied + (gathered(model.network) if sharded else 0)
    host |= {**vae, **sent, **opened, "a group's noise": noise, **sizes.pinned(sizes.opened_of(run)), **saving}
    return Memory(
        role="learner",
        processes=role.ranks,
        gpus=role.gpus,
        held={**held, **others, **opened, **({} if gpu else {**sent, **sampled.host})},
        phases={
            **sampled.phases,
            **({} if gpu else {"drawing a group's noise": noise, **saving}),
            f"forward and backward, {rows} (image, step) pairs at once": passing,
            **phases,
            **({"adding up the ranks' gradients": 2 * precise} if role.ranks > 1 and not sharded else {}),
        },
        beside={**host, **sampled.beside} if gpu else {},
    )


def _pinned_state(kept: Mapping[str, int], model: Hollow, ranks: int, *, tensors: int) -> dict[str, int]:
    """Return the pinned memory of a rank's part of what is kept: so many tensors for each of the trained weights."""
    numbers = [-(-p.numel() // ranks) for p in model.trained.values()]
    widths = {name: round(size / (tensors * sum(numbers))) for name, size in kept.items()}
    return {
        f"{name}, parked": tensors * sum(sizes.rounded(width * count) for count in numbers)
        for name, width in widths.items()
    }


def _pinned_parts(model: Hollow, ranks: int) -> dict[str, int]:
    """Return the pinned memory of a rank's parts of the network, which are in float32 where they are trained."""
    frozen = [p.nbytes for p in model.network.parameters() if not p.requires_grad]
    trained = [sizes.FLOAT * p.numel() for p in model.trained.values()]
    rows = {"denoising network, frozen": frozen, "trained weights": trained}
    return {f"{name}, offloaded": sum(sizes.rounded(-(-size // ranks)) for size in of) for name, of in rows.items()}


def sampler(run: Run) -> Memory:
    """Return the memory of one sampler."""
    model, role = sizes.hollow_of(run), run.workers.samplers
    gpu = role.gpus > 0
    taken, (others, vae) = sampling(run, gpu=gpu), other_parts(model, parked=gpu and run.workers.park)
    return Memory(
        role="sampler",
        processes=max(role.workers, role.max or 0),
        gpus=role.gpus,
        held={
            "denoising network": size_of_module(model.network),
            **others,
            **({} if gpu else taken.host),
        },
        phases=taken.phases,
        beside={**taken.beside, **vae} if gpu else {},
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


def scorer(run: Run) -> Memory:
    """Return the memory of one scorer: the trained rewards and those of evaluations."""
    role = run.workers.scorers
    gpu = role.gpus > 0
    rewards = (*run.rewards, *run.evaluation.rewards)
    images = max(run.rollout.images, run.evaluation.images)
    measured = {name: scoring.measure(found, images, gpu) for name, found in scoring.clips(rewards).items()}
    heads, scored = scoring.heads(rewards), {"a group's images": sizes.images_of(run, images)}
    held, woken, host = {**{name: one.size for name, one in measured.items()}, **heads}, dict.fromkeys(measured, 0), {}
    if gpu and run.workers.park:
        woken = {name: one.size + sum(heads.values()) for name, one in measured.items()}
        held, host = {}, {f"{name}, parked": one.pinned for name, one in measured.items()} | heads
    return Memory(
        role="scorer",
        processes=max(role.workers, role.max or 0),
        gpus=role.gpus,
        held={**held, **({} if gpu else scored)},
        phases={f"embedding with {name}": woken[name] + one.peak for name, one in measured.items()},
        beside={**host, **scored} if gpu else {},
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
