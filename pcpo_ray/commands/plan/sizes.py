"""Counts and bytes of the pieces a run's processes handle: trajectories, passes, noise, images."""

import dataclasses
from functools import lru_cache

import torch
from torch import nn

from pcpo_ray import models
from pcpo_ray.algorithm.credit import Credit
from pcpo_ray.commands.plan.hollow import Hollow, size_of
from pcpo_ray.config import MEASURED, Model, Renoised, Run, Sampling, Window
from pcpo_ray.models import steps
from pcpo_ray.workers import packing
from pcpo_ray.workers.learner import autotune, micro_batches, mini_batches, old_predictions

FLOAT = 4
"""Bytes of a float32."""


@lru_cache(maxsize=16)
def hollow(model: Model, sampling: Sampling) -> Hollow:
    """Make a model without data, once for all settings that leave its tensors as they are."""
    return Hollow(model, sampling)


def hollow_of(run: Run, sampling: Sampling | None = None) -> Hollow:
    """Return the run's model without data, sampled as in training, or as `sampling` says."""
    plain = dataclasses.replace(sampling or run.sampling, trained_steps=None, subset=None, batch=None)
    return hollow(run.model, dataclasses.replace(plain, shared_noise=False))


def credit_of(run: Run) -> Credit:
    """Return the credit of all timesteps that some batch trains. Raises CreditError and ScheduleError."""
    schedule = models.schedule_of(models.folder_of(run.model, weights=False), run.model, run.sampling)
    return steps.plan(run.credit, run.sampling, schedule)


def trained_steps(run: Run) -> int:
    """Count the timesteps of a trajectory that are kept for training. Raises CreditError and ScheduleError."""
    return steps.trained_steps(run)


def sent_steps(run: Run) -> int:
    """Count the timesteps whose latents are sent, at most (packing.py)."""
    if isinstance(run.sampling.process, Renoised):
        return 1  # the final ones, from which all others follow
    credit, subset = credit_of(run), run.sampling.subset
    trained = credit.trained
    if isinstance(subset, Window):
        places = range(len(trained) - subset.size + 1)
        return max(len(packing.sent_steps(credit.restricted(trained[at : at + subset.size]))) for at in places)
    count = steps.trained_per_group(subset, len(trained))
    if subset is None or any(credit.mix[index] != 1 for index in trained):
        return min(count, len(packing.sent_steps(credit)) + len(trained) - count)
    return min(count, len(trained) - count)  # an untrained timestep before each


def trajectory_of(run: Run) -> int:
    """Return the bytes of one group's packed trajectory, at most."""
    model = hollow_of(run)
    storage: int = getattr(torch, run.sampling.storage).itemsize
    computed = 2 if run.optimizer.mixed_precision == "bf16" else getattr(torch, run.model.dtype).itemsize
    prediction = min(storage, computed) if model.plain else storage
    latents = model.latents // FLOAT
    steps = trained_steps(run)
    numbers = 2 if isinstance(run.credit, MEASURED) else 1
    an_image = latents * (steps * prediction + sent_steps(run) * storage) + numbers * FLOAT * steps
    return run.rollout.images * an_image + size_of(*model.encoded[0].values())


def opened_of(run: Run) -> int:
    """Return the bytes of one group's unpacked trajectory."""
    model, steps = hollow_of(run), trained_steps(run)
    pairs = run.rollout.images * steps
    index = torch.long.itemsize * steps
    latents: int = model.latents * getattr(torch, run.sampling.storage).itemsize // FLOAT
    return 3 * pairs * latents + FLOAT * pairs + index + size_of(*model.encoded[0].values())


def micro_batch_of(run: Run) -> int:
    """Return the (image, timestep) pairs of the learner's largest micro-batch.

    `auto` on a CPU tries its candidates with a forward and backward pass. On a GPU running out of memory ends the
    tries (autotune.measure), so there it needs no more than the sampler's number.
    """
    asked = run.optimizer.micro_batch
    if isinstance(asked, int):
        return asked
    if asked is None or run.workers.learner.gpus > 0:
        return rows_of(run)
    groups = -(-run.rollout.prompts // run.optimizer.minibatches)
    pairs = groups * run.rollout.images * trained_steps(run) // run.workers.learner.ranks
    return autotune.candidates(rows_of(run), pairs)[-1]


def pass_of(run: Run, size: int) -> tuple[int, int]:
    """Return the pairs of one pass at a micro-batch of `size`, and the groups they come from, at most.

    It follows micro_batches.passes over one optimizer step of a rank, or over a whole batch if older groups are
    weighted first.
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
                # a rank has blocks of other groups in each optimizer step, and weights them all together
                spanned = max(spanned, min(len(one), groups) if weighed and ranks > 1 else len(set(one)))
    return pairs, spanned


def pairs_of(run: Run, count: int) -> int:
    """Return the bytes of `count` pairs' latents, predictions, noise and texts, copied out of their groups."""
    model = hollow_of(run)
    latents: int = model.latents * getattr(torch, run.sampling.storage).itemsize // FLOAT
    return count * (3 * latents + FLOAT + torch.long.itemsize + size_of(*model.encoded[0].values()))


def recomputed_pairs(run: Run) -> tuple[int, int]:
    """Count the pairs of which the busiest rank takes old predictions before the first optimizer step, and keeps them.

    None without objective.old_predictions=recomputed. Those of the first mini-batch need none, and are kept for a
    second epoch.
    """
    if run.objective.old_predictions == "sampled":
        return 0, 0
    asked, images = run.optimizer.micro_batch, run.rollout.images
    length = mini_batches.length_of(run, asked if isinstance(asked, int) else None)
    group = (images, trained_steps(run))
    parts = mini_batches.split_groups(run.optimizer, run.rollout.prompts, seed=run.seed, step=1)
    blocks = [mini_batches.cut_into_blocks(dict.fromkeys(part, group), length) for part in parts]
    taken, kept = [], []
    for rank in range(run.workers.learner.ranks):
        shares = [mini_batches.rank_share(part, rank, run.workers.learner.ranks) for part in blocks]
        taken.append(sum(len(block) for part in old_predictions.later_parts(shares) for block in part))
        kept.append(taken[-1] + (sum(map(len, shares[0])) if run.optimizer.epochs > 1 else 0))
    return max(taken), max(kept)


def old_predictions_of(run: Run) -> int:
    """Return the bytes of the old predictions that a rank keeps in main memory."""
    kept: int = recomputed_pairs(run)[1] * hollow_of(run).latents
    return kept


def pinned(size: int) -> dict[str, int]:
    """Return the pinned memory for `size` bytes on their way to a GPU."""
    return {"pinned, on the way to the GPU": rounded(size)}


def rounded(size: int) -> int:
    """Return the pinned memory that `size` bytes take: torch rounds it up to a power of two."""
    return 1 << max(0, size - 1).bit_length()


def pinned_copy(module: nn.Module) -> int:
    """Return the pinned memory of a network that is parked (data/parked.py)."""
    return sum(rounded(tensor.nbytes) for tensor in (*module.parameters(), *module.buffers()))


def noise_of(run: Run) -> int:
    """Return the bytes of one group's noise at all timesteps."""
    return run.rollout.images * run.sampling.steps * hollow_of(run).latents


def images_of(run: Run, images: int) -> int:
    """Return the bytes of `images` decoded images."""
    denoiser = hollow_of(run).denoiser
    count: int = images * denoiser.height * denoiser.width * 3
    return count


def rows_of(run: Run) -> int:
    """Return how many images go through the network at once."""
    return run.sampling.together(run.rollout.images)


def evaluation_noise_of(run: Run) -> int:
    """Return the bytes of one evaluation task's noise at all timesteps."""
    if run.evaluation.sampling is not None and run.evaluation.sampling.deterministic:
        return 0
    images: int = max(run.rollout.images, run.evaluation.images)
    return images * run.evaluated.steps * hollow_of(run).latents
