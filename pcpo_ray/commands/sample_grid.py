"""Images of a prompt, with one run's weights or with several adapters composed at inference.

The prediction is base + sum over adapters k of s_k (adapter_k - base); s = 1 of one adapter is that adapter itself.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from pcpo_ray import config
from pcpo_ray.commands.results import SampleResult
from pcpo_ray.commands.sample_options import Strengths
from pcpo_ray.config.files import differing
from pcpo_ray.data import tensors
from pcpo_ray.data.types import Prompt, Task
from pcpo_ray.errors import RunError
from pcpo_ray.runs import checkpoints, configs, records
from pcpo_ray.runs.names import step_of
from pcpo_ray.workers.learner import sharding
from pcpo_ray.workers.sampler import Sampler

LOADING = "loading the model"

Waiting = Callable[[str, int, int], None]
"""A function that is told what goes on, and how much of it is done of how much (0 of 0: not countable)."""


def plain(
    run: config.Run, found: Sequence[Path | None], prompt: str, *, images: int, seed: int, waiting: Waiting
) -> SampleResult:
    """Sample a row of images with each checkpoint's weights, all rows from the same noise.

    None is the model before training; it has no weights to load, so it comes first.
    """
    waiting(LOADING, 0, 0)
    sampler = Sampler(dataclasses.replace(run, seed=seed), tensors.device_here())
    rows = {}
    for checkpoint in found:
        if checkpoint is not None:
            trained = sampler.policy.denoiser.trainable()
            sharding.load_parameters(checkpoint, checkpoints.read(checkpoint).best, trained)
        label = _label(checkpoint)
        rows[label] = [_drawn(sampler, prompt, images, label, waiting)]
    names = [f"seed {seed}, {number}" for number in range(1, images + 1)]
    return SampleResult(prompt=prompt, cells=list(rows.values()), rows=list(rows), names=names)


def _label(checkpoint: Path | None) -> str:
    return "before training" if checkpoint is None else f"after step {step_of(checkpoint.name)}"


def grid(
    adapters: Sequence[Strengths[Path]],
    prompt: str,
    *,
    images: int,
    seed: int,
    say: Callable[[str], None],
    waiting: Waiting,
) -> SampleResult:
    """Sample all combinations of strengths: the first adapter's down, the others' across. Raises RunError."""
    read = [configs.read(adapter.folder) for adapter in adapters]
    for adapter, run in zip(adapters, read, strict=True):
        if not isinstance(run.model.train, config.Lora):
            raise RunError(f"{adapter.folder} trains the whole model; adapters compose: expected model.train.kind=lora")
        if run.model != read[0].model:
            changed = differing(dataclasses.asdict(read[0].model), dataclasses.asdict(run.model), "model")
            raise RunError(
                f"{adapter.folder} trains another model than {adapters[0].folder}, and adapters compose on one model "
                f"only: {'; '.join(f'{key} {text}' for key, text in changed.items())}"
            )
    waiting(LOADING, 0, 0)
    # credit `interpolate` would mix in the reference a second time
    own = dataclasses.replace(read[0], seed=seed, credit=config.Native())
    sampler = Sampler(own, tensors.device_here())
    loaded = []
    for adapter in adapters:
        found = records.newest_checkpoint(adapter.folder, say)
        saved = checkpoints.read(found).best
        sharding.load_parameters(found, saved, sampler.policy.denoiser.trainable())
        loaded.append(saved)
    across = list(itertools.product(*(adapter.values for adapter in adapters[1:])))
    rows = []
    cell, of = itertools.count(1), len(adapters[0].values) * len(across)
    for first in adapters[0].values:
        cells = []
        for others in across:
            sampler.policy.compose(list(zip(loaded, (first, *others), strict=True)))
            cells.append(_drawn(sampler, prompt, images, f"combination {next(cell)} of {of}", waiting))
        rows.append(cells)
    names = [adapter.folder.name for adapter in adapters]
    columns = [
        ", ".join(f"{name} {value:g}" for name, value in zip(names[1:], others, strict=True)) for others in across
    ]
    labels = [f"{names[0]} {value:g}" for value in adapters[0].values]
    return SampleResult(prompt=prompt, cells=rows, rows=labels, columns=columns)


def _drawn(sampler: Sampler, prompt: str, images: int, what: str, waiting: Waiting) -> UInt8[np.ndarray, "N H W 3"]:
    def watch(done: int, steps: int) -> None:
        waiting(f"drawing {images} images, {what}: denoising step {done}/{steps}", done, steps)

    sampler.watch = watch
    task = Task(
        step=0,
        position=0,
        prompt=Prompt(index=0, text=prompt),
        images=images,
        version=0,
        purpose="evaluate",
    )
    _, drawn = sampler.sample(task)
    return drawn
