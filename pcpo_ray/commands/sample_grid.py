"""Images of a prompt in one PNG, with one run's weights or with several adapters composed at inference.

The prediction is base + sum over adapters k of s_k (adapter_k - base); s = 1 of one adapter is that adapter itself.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from pcpo_ray import config
from pcpo_ray.data import tensors
from pcpo_ray.data.types import Prompt, Task
from pcpo_ray.errors import RunError
from pcpo_ray.runs import checkpoints, records
from pcpo_ray.workers.learner import distributed
from pcpo_ray.workers.sampler import Sampler


@dataclasses.dataclass(frozen=True, kw_only=True)
class Strengths:
    """A run's folder, and the strengths at which its adapter is applied."""

    folder: Path
    values: tuple[float, ...] = (1.0,)


def parse(text: str, folder_of: Callable[[str], Path] = Path) -> Strengths:
    """Parse `runs/mine=0.5,1`; `folder_of` maps the run's place to a folder. Raises RunError."""
    folder, equals, listed = text.rpartition("=")
    try:
        values = tuple(float(value) for value in listed.split(","))
    except ValueError:
        values = ()
    if not equals or not values or not np.isfinite(values).all():
        raise RunError(f"got {text!r}; expected a run's folder and strengths, such as runs/mine=0.5,1")
    return Strengths(folder=folder_of(folder), values=values)


def check_writable(out: Path) -> None:
    """Check that `out` can be a PNG file. Raises RunError."""
    if out.suffix != ".png" or not out.parent.is_dir():
        raise RunError(f"pictures cannot be written to {out}; expected a name ending in .png in a folder that exists")


def plain(run: config.Run, checkpoint: Path | None, prompt: str, *, images: int, seed: int, out: Path) -> None:
    """Write images side by side, with a checkpoint's weights (None: the model before training). Raises RunError."""
    check_writable(out)
    from PIL import Image

    sampler = Sampler(dataclasses.replace(run, seed=seed), tensors.device_here())
    if checkpoint is not None:
        distributed.load_parameters(checkpoint, checkpoints.read(checkpoint).best, sampler.policy.denoiser.trainable())
    Image.fromarray(_row(sampler, prompt, images)).save(out)


def grid(
    adapters: Sequence[Strengths], prompt: str, *, images: int, seed: int, out: Path, say: Callable[[str], None]
) -> None:
    """Write a grid of all combinations of strengths: the first adapter's down, the others' across. Raises RunError."""
    check_writable(out)
    read = [records.read(adapter.folder) for adapter in adapters]
    for adapter, run in zip(adapters, read, strict=True):
        if run.model != read[0].model or not isinstance(run.model.train, config.Lora):
            raise RunError(
                f"{adapter.folder} trains {run.model}; adapters compose on one model, as LoRA of one shape: "
                f"expected {read[0].model} with model.train.kind=lora"
            )
    # credit `interpolate` would mix in the reference a second time
    own = dataclasses.replace(read[0], seed=seed, credit=config.Native())
    sampler = Sampler(own, tensors.device_here())
    loaded = []
    for adapter in adapters:
        found = records.newest_checkpoint(adapter.folder, say)
        saved = checkpoints.read(found).best
        distributed.load_parameters(found, saved, sampler.policy.denoiser.trainable())
        loaded.append(saved)
    across = list(itertools.product(*(adapter.values for adapter in adapters[1:])))
    rows = []
    for first in adapters[0].values:
        cells = []
        for others in across:
            sampler.policy.compose(list(zip(loaded, (first, *others), strict=True)))
            cells.append(_row(sampler, prompt, images))
        rows.append(cells)
    names = [adapter.folder.name for adapter in adapters]
    columns = [
        ", ".join(f"{name} {value:g}" for name, value in zip(names[1:], others, strict=True)) for others in across
    ]
    _save(rows, [f"{names[0]} {value:g}" for value in adapters[0].values], columns, prompt, out)


def _row(sampler: Sampler, prompt: str, images: int) -> UInt8[np.ndarray, "H W 3"]:
    task = Task(
        step=0,
        position=0,
        prompt=Prompt(index=0, text=prompt),
        images=images,
        version=0,
        purpose="evaluate",
    )
    _, drawn = sampler.sample(task)
    return np.concatenate(list(drawn), axis=1)


def _save(cells: list[list[np.ndarray]], rows: list[str], columns: list[str], title: str, out: Path) -> None:
    """Save the cells as one figure, with the strengths along its edges."""
    from matplotlib.figure import Figure

    height, width = cells[0][0].shape[:2]
    figure = Figure(figsize=(1.0 + 1.6 * len(columns) * width / height, 0.7 + 1.6 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for r, c in itertools.product(range(len(rows)), range(len(columns))):
        axis = axes[r][c]
        axis.imshow(cells[r][c], interpolation="nearest")
        axis.set(xticks=[], yticks=[])
        if c == 0:
            axis.set_ylabel(rows[r])
        if r == 0:
            axis.set_title(columns[c], fontsize="medium")
    figure.suptitle(title)
    figure.savefig(out, dpi=150)
