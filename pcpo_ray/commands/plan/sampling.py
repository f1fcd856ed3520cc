"""Memory of sampling, in a process that holds the network: a sampler's, or a learner's rank between updates."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pcpo_ray import config
from pcpo_ray.commands.plan import sizes
from pcpo_ray.commands.plan.hollow import Hollow, size_of, size_of_module
from pcpo_ray.config import Run
from pcpo_ray.models.texts import KEPT

VAE = "vae"
"""The name of the VAE among a pipeline's parts."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Bytes that sampling takes beside the network: `host` in main memory, `phases` on the device, one at a time."""

    host: Mapping[str, int]
    phases: Mapping[str, int]
    beside: Mapping[str, int]
    """The bytes that a process with a GPU also holds in main memory, `host` included."""


def sampling(run: Run, *, gpu: bool) -> Sampling:
    """Return what sampling takes of a process that holds the network."""
    model = sizes.hollow_of(run)
    rows, steps = sizes.rows_of(run), sizes.trained_steps(run)
    images, decoded = run.rollout.images, max(run.rollout.images, run.evaluation.images)
    trajectory, shown = sizes.opened_of(run), sizes.images_of(run, decoded)
    encoders = sum(size_of_module(part) for name, part in model.parts.items() if name in model.denoiser.encoders)
    woken = size_of_module(model.parts[VAE]) if run.workers.park and gpu else 0
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
            f"decoding {decoded} images": kept + woken + model.decoding(decoded, gpu=gpu),
            "putting the trajectory together": kept + trajectory,
        },
        beside={**host, "a group's trajectory and images": trajectory + shown, **sizes.pinned(noises)},
    )


def lent(run: Run, *, sharded: bool, gpu: bool) -> Sampling:
    """Return what sampling takes of a learner's rank; nothing of one that only learns (workers.learner.samples)."""
    if not run.workers.learner.samples:
        return Sampling(host={}, phases={}, beside={})
    model, taken = sizes.hollow_of(run), sampling(run, gpu=gpu)
    joined = size_of_module(model.network) if sharded else 0  # gathered, and its parts stay where they are
    trained = size_of(*model.trained.values())
    aside = trained if run.optimizer.average is not None or run.rollout.max_staleness else 0
    more = joined + aside  # its own weights, while an EMA or an older version is sampled with
    return Sampling(
        host=taken.host,
        phases={f"sampling: {name}": size + more for name, size in taken.phases.items()},
        beside={f"sampling: {name}": size for name, size in taken.beside.items()},
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


def other_parts(model: Hollow, *, parked: bool) -> tuple[dict[str, int], dict[str, int]]:
    """Return the pipeline's networks that stay loaded beside the denoiser: on the device, and a VAE that is parked."""
    others = {name: part for name, part in model.parts.items() if name not in model.denoiser.encoders}
    there = {name: size_of_module(part) for name, part in others.items() if part is not model.network}
    if not parked:
        return there, {}
    del there[VAE]
    return there, {f"{VAE}, parked": sizes.pinned_copy(model.parts[VAE])}
