"""What a run's processes will hold, role by role, and what its object stores will: a config in, bytes out."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import nn

from pcpo_ray import models
from pcpo_ray.algorithm.credit import Credit
from pcpo_ray.commands.plan import scoring
from pcpo_ray.commands.plan.gpus import CONTEXT, SLACK
from pcpo_ray.commands.plan.hollow import Hollow, size_of, size_of_module
from pcpo_ray.config import ROLLOUT_STORE_FRACTION, Full, Model, Run, Sampling, Window
from pcpo_ray.models import policy
from pcpo_ray.models.texts import KEPT
from pcpo_ray.workers import packing
from pcpo_ray.workers.learner import micro_batches, mini_batches
from pcpo_ray.workers.learner.movement import SAMPLED

FLOAT = 4


@dataclass(frozen=True, kw_only=True)
class Memory:
    """One process's bytes, where its tensors are: what it holds all the time, and its phases, of which one is at once.

    `beside` is what a process with a GPU has in the machine's memory besides.
    """

    role: str
    processes: int
    gpus: float
    held: Mapping[str, int]
    phases: Mapping[str, int]
    beside: Mapping[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """The most at once."""
        tensors = sum(self.held.values()) + max(self.phases.values(), default=0)
        return round(tensors * (1 + SLACK) + CONTEXT) if self.gpus else tensors

    @property
    def busiest(self) -> str:
        """The phase in which it has the most."""
        return max(self.phases, key=lambda phase: self.phases[phase], default="")


@dataclass(frozen=True, kw_only=True)
class Store:
    """The bytes of all object stores together: groups sampled and not yet learned, and all else."""

    groups: int
    trajectory: int
    """Of one group, packed."""
    pictures: int
    """Of one group."""
    others: Mapping[str, int]

    @property
    def total(self) -> int:
        return self.groups + sum(self.others.values())

    @property
    def needed(self) -> int:
        """What the stores must have, so that no batch waits for room that rollout.max_staleness would allow."""
        return max(self.total, math.ceil(self.groups / ROLLOUT_STORE_FRACTION))


@lru_cache(maxsize=16)
def hollow(model: Model, sampling: Sampling) -> Hollow:
    """Made once for all settings that leave its tensors as they are."""
    return Hollow(model, sampling)


def hollow_of(run: Run, sampling: Sampling | None = None) -> Hollow:
    """The run's model without data, sampled from as in training, or in another way."""
    plain = dataclasses.replace(sampling or run.sampling, trained_steps=None, subset=None, batch=None)
    return hollow(run.model, dataclasses.replace(plain, shared_noise=False))


def credit_of(run: Run) -> Credit:
    """Of all steps that are trained at some batch. Raises CreditError and ScheduleError."""
    schedule = models.schedule_of(models.folder_of(run.model, weights=False), run.model, run.sampling)
    return policy.plan(run.credit, run.sampling, schedule)


def trained_steps(run: Run) -> int:
    """How many steps of a trajectory are kept to be trained on. Raises CreditError and ScheduleError."""
    return policy.trained_steps(run)


def sent_steps(run: Run) -> int:
    """Of how many of these the latents are sent, at most (packing.py)."""
    credit, subset = credit_of(run), run.sampling.subset
    trained = credit.trained
    if isinstance(subset, Window):
        places = range(len(trained) - subset.size + 1)
        return max(len(packing.sent_steps(credit.restricted(trained[at : at + subset.size]))) for at in places)
    count = policy.trained_per_group(subset, len(trained))
    if subset is None or any(credit.mix[index] != 1 for index in trained):
        return min(count, len(packing.sent_steps(credit)) + len(trained) - count)
    return min(count, len(trained) - count)  # a step that was left out before each


def trajectory_of(run: Run) -> int:
    """The bytes of one group's trajectory as it is sent, at most."""
    model = hollow_of(run)
    storage: int = getattr(torch, run.sampling.storage).itemsize
    computed = 2 if run.optimizer.mixed_precision == "bf16" else getattr(torch, run.model.dtype).itemsize
    prediction = min(storage, computed) if model.plain else storage
    latents = model.latents // FLOAT
    steps = trained_steps(run)
    an_image = latents * (steps * prediction + sent_steps(run) * storage) + FLOAT * steps
    return run.rollout.images * an_image + size_of(*model.encoded[0].values())


def opened_of(run: Run) -> int:
    """The bytes of one group's trajectory as it is learned from."""
    model, steps = hollow_of(run), trained_steps(run)
    pairs = run.rollout.images * steps
    index = torch.long.itemsize * steps
    latents: int = model.latents * getattr(torch, run.sampling.storage).itemsize // FLOAT
    return 3 * pairs * latents + FLOAT * pairs + index + size_of(*model.encoded[0].values())


def micro_batch_of(run: Run) -> int:
    """The (image, step) pairs that the learner is to have at once, at most.

    `auto` on a CPU has gone forward and backward with them before it chooses. A GPU's memory ends its tries
    (micro_batches.measure), so there it needs no more than the sampler's number.
    """
    asked = run.optimizer.micro_batch
    if isinstance(asked, int):
        return asked
    if asked is None or run.workers.learner.gpus > 0:
        return rows_of(run)
    groups = -(-run.rollout.prompts // run.optimizer.minibatches)
    pairs = groups * run.rollout.images * trained_steps(run) // run.workers.learner.ranks
    return micro_batches.candidates(rows_of(run), pairs)[-1]


def pass_of(run: Run, size: int) -> tuple[int, int]:
    """At a micro-batch of `size` (image, step) pairs: those of one pass, and the groups that they are of, at most.

    As micro_batches.passes makes them of what a rank learns in one optimizer step, or, where older groups are weighed
    first, of all that it learns of a batch.
    """
    weighed, ranks = run.objective.correction is not None, run.workers.learner.ranks
    groups = run.rollout.prompts if weighed else -(-run.rollout.prompts // run.optimizer.minibatches)
    length = mini_batches.length_of(run, size)
    blocks = mini_batches.cut_into_blocks(
        dict.fromkeys(range(groups), (run.rollout.images, trained_steps(run))), length
    )
    together = micro_batches.blocks_per_pass(length, size)
    pairs = spanned = 0
    for rank in range(ranks):
        kinds: dict[int, list[int]] = {}
        for block in mini_batches.rank_share(blocks, rank, ranks):
            kinds.setdefault(len(block), []).append(block.place)
        for images, places in kinds.items():
            for one in micro_batches.split(places, together):
                pairs = max(pairs, len(one) * images)
                # of each optimizer step a rank has blocks of other groups, and it weighs them all together
                spanned = max(spanned, min(len(one), groups) if weighed and ranks > 1 else len(set(one)))
    return pairs, spanned


def pairs_of(run: Run, count: int) -> int:
    """The bytes of so many pairs' latents, predictions, noise and texts, copied out of their groups."""
    model = hollow_of(run)
    latents: int = model.latents * getattr(torch, run.sampling.storage).itemsize // FLOAT
    return count * (3 * latents + FLOAT + torch.long.itemsize + size_of(*model.encoded[0].values()))


def pinned(size: int) -> dict[str, int]:
    """Of so many bytes on their way to a GPU: torch keeps the memory, rounded up to a power of two."""
    return {"pinned, on the way to the GPU": 1 << max(0, size - 1).bit_length()}


def noise_of(run: Run) -> int:
    """The bytes of one group's noise, drawn at all steps."""
    return run.rollout.images * run.sampling.steps * hollow_of(run).latents


def pictures_of(run: Run, images: int) -> int:
    """The bytes of so many images."""
    denoiser = hollow_of(run).denoiser
    count: int = images * denoiser.height * denoiser.width * 3
    return count


def rows_of(run: Run) -> int:
    """The images that go through the network at once."""
    return min(run.sampling.batch or run.rollout.images, run.rollout.images)


def store(run: Run) -> Store:
    """What the object stores hold at most."""
    trajectory, pictures = trajectory_of(run), pictures_of(run, run.rollout.images)
    trained = size_of(*hollow_of(run).trained.values())
    versions = run.rollout.max_staleness + 2  # one that a sampler still asks for each, and the one that comes
    prompts = run.evaluation.count + run.evaluation.train_count
    evaluated = prompts * pictures_of(run, run.evaluation.images)
    return Store(
        groups=(run.rollout.max_staleness + 1) * run.rollout.prompts * (trajectory + pictures),
        trajectory=trajectory,
        pictures=pictures,
        others={
            f"{versions} versions of the weights": versions * trained,
            **({} if run.optimizer.average is None else {"their running mean": trained}),
            f"an evaluation's {prompts * run.evaluation.images} pictures": evaluated,
        },
    )


def learner(run: Run) -> Memory:
    """One of the learner's ranks."""
    model, role = hollow_of(run), run.workers.learner
    gpu = role.gpus > 0
    rows, together = pass_of(run, micro_batch_of(run))
    sharded = role.strategy == "fsdp2" and role.ranks > 1
    parts = role.ranks if sharded else 1
    trained = size_of(*model.trained.values())
    frozen = size_of_module(model.network) - trained
    precise = FLOAT * sum(p.numel() for p in model.trained.values())
    copied_masters = FLOAT * sum(p.numel() for p in model.trained.values() if p.dtype is not torch.float32)
    remembered = FLOAT * sum(min(p.numel() // parts, SAMPLED) for p in model.trained.values())
    moments = 2 * precise // parts + FLOAT * len(model.trained)
    pass_ = model.learning(rows, mixed=run.optimizer.mixed_precision == "bf16", kl=run.objective.kl > 0, gpu=gpu)
    opened, noise = {"a group's trajectory": opened_of(run)}, noise_of(run)
    if together > 1:
        opened = {f"{together} groups' trajectories": together * opened_of(run)}
    copied = pairs_of(run, rows) if rows > rows_of(run) else rows * size_of(*model.encoded[0].values())
    sent = {"the weights that it sent last": trained}
    full = isinstance(run.model.train, Full)
    encoders = sum(size_of_module(part) for name, part in model.parts.items() if name in model.denoiser.encoders)
    largest = FLOAT * max(p.numel() for p in model.trained.values())
    return Memory(
        role="learner",
        processes=role.ranks,
        gpus=role.gpus,
        held={
            "denoising network, frozen": frozen // parts,
            "trained weights": (precise if sharded else trained) // parts,
            **({"their float32 masters": copied_masters} if copied_masters and not sharded else {}),
            "gradients": precise // parts,
            "AdamW's two moments": moments,
            "weights before the update, sampled": remembered,
            **({} if run.optimizer.average is None else {"running mean of the weights": precise // parts}),
            **_other_parts(model),
            **opened,
            **({} if gpu else sent),
        },
        phases={
            **({} if gpu else {"drawing a group's noise": noise}),
            f"forward and backward, {rows} (image, step) pairs at once": pass_
            + copied
            + (gathered(model.network) if sharded else 0),
            "AdamW's step": precise // parts if gpu else 3 * largest,  # one parameter after the other on the CPU
            **({} if run.optimizer.average is None else {"sending the running mean": precise // parts}),
            **({"adding up the ranks' gradients": 2 * precise} if role.ranks > 1 and not sharded else {}),
            **({"text encoders, while a checkpoint is written": encoders} if full else {}),
        },
        beside={**sent, **opened, "a group's noise": noise, **pinned(opened_of(run))} if gpu else {},
    )


def sampler(run: Run) -> Memory:
    """One sampler."""
    model, role = hollow_of(run), run.workers.samplers
    gpu, rows, steps = role.gpus > 0, rows_of(run), trained_steps(run)
    images, decoded = run.rollout.images, max(run.rollout.images, run.evaluation.images)
    trajectory, pictures = opened_of(run), pictures_of(run, decoded)
    encoders = sum(size_of_module(part) for name, part in model.parts.items() if name in model.denoiser.encoders)
    evaluated, noises = evaluating(run, gpu=gpu), max(noise_of(run), evaluation_noise_of(run))
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
    return Memory(
        role="sampler",
        processes=max(role.workers, role.max or 0),
        gpus=role.gpus,
        held={"denoising network": size_of_module(model.network), **_other_parts(model), **({} if gpu else host)},
        phases={
            "encoding a text": encoding + (encoders if gpu else 0),
            f"a prediction, {rows} {'image' if rows == 1 else 'images'} at once": kept + predicting,
            **evaluated,
            f"decoding {decoded} images": kept + model.decoding(decoded, gpu=gpu),
            "putting the trajectory together": kept + trajectory,
        },
        beside={**host, "a group's trajectory and pictures": trajectory + pictures, **pinned(noises)} if gpu else {},
    )


def evaluating(run: Run, *, gpu: bool) -> dict[str, int]:
    """The phase of an evaluation that samples in a way of its own; none where it samples as training does."""
    if run.evaluation.sampling is None:
        return {}
    model = hollow_of(run, run.evaluated)
    images = max(run.rollout.images, run.evaluation.images)  # evaluation.tasks fills a group
    rows = min(run.sampling.batch or images, images)
    texts = images * size_of(*model.encoded[0].values())
    predicting = model.predicting(rows, mixed=run.optimizer.mixed_precision == "bf16", gpu=gpu)
    name = f"an evaluation's prediction, {rows} {'image' if rows == 1 else 'images'} at once"
    return {name: texts + 2 * images * model.latents + predicting}


def evaluation_noise_of(run: Run) -> int:
    """The bytes of the noise of one evaluation task, drawn at all steps."""
    if run.evaluation.sampling is not None and run.evaluation.sampling.deterministic:
        return 0
    images: int = max(run.rollout.images, run.evaluation.images)
    return images * run.evaluated.steps * hollow_of(run).latents


def scorer(run: Run) -> Memory:
    """One scorer: the rewards trained on, and those that evaluations watch."""
    role = run.workers.scorers
    gpu = role.gpus > 0
    rewards = (*run.rewards, *run.evaluation.rewards)
    images = max(run.rollout.images, run.evaluation.images)
    measured = {name: scoring.measure(found, images, gpu) for name, found in scoring.clips(rewards).items()}
    pictures = {"a group's pictures": pictures_of(run, images)}
    return Memory(
        role="scorer",
        processes=max(role.workers, role.max or 0),
        gpus=role.gpus,
        held={
            **{name: size for name, (size, _) in measured.items()},
            **scoring.heads(rewards),
            **({} if gpu else pictures),
        },
        phases={f"embedding with {name}": peak for name, (_, peak) in measured.items()},
        beside=pictures if gpu else {},
    )


def gathered(network: nn.Module) -> int:
    """What fsdp2 has whole at once, at most, of a network that is cut as ranks.shard cuts it.

    The root's own parameters, those of a block and of the blocks around it; for the block that is fetched meanwhile,
    the parameters and the buffer they arrive in; for the one whose gradients leave, these and their float32 buffer.
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
            leaving[block] += parameter.nbytes + FLOAT * parameter.numel()
    chains = [sum(own[block] for block in around(name)) for name in own]
    return max(chains) + 2 * max(own.values()) + max(leaving.values())


def _other_parts(model: Hollow) -> dict[str, int]:
    """The pipeline's networks that are there all the time beside the one that denoises."""
    others = {name: part for name, part in model.parts.items() if name not in model.denoiser.encoders}
    return {name: size_of_module(part) for name, part in others.items() if part is not model.network}
