"""The check of the model: its files, two sampled images, and one update that moves the weights."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from pcpo_ray import config
from pcpo_ray.commands import early, session
from pcpo_ray.commands.check.finding import Finding, judged
from pcpo_ray.data import prompts
from pcpo_ray.data.tensors import device_here
from pcpo_ray.data.types import Task
from pcpo_ray.errors import ModelError
from pcpo_ray.models import lora_file, lora_place
from pcpo_ray.workers.learner.learner import Learner
from pcpo_ray.workers.sampler import Sampler

IMAGES = 2


def files(run: config.Run) -> Iterator[Finding]:
    """Check every file that the run reads, its own code and its steps, each of which says itself what to do."""
    wrong = early.faults((*session.file_checks(run), lambda: session.check_steps(run)))
    if not wrong:
        yield Finding(part="files", tried="all are there and are what they say", verdict="passed")
    for error in wrong:
        yield Finding(part="files", tried="all are there and are what they say", verdict="failed", detail=str(error))


def adapter(run: config.Run) -> Finding:
    """Check that the adapter to start from changes the model: released ones have been all zeros."""
    start = run.model.train.start if isinstance(run.model.train, config.Lora) else None
    tried = "the adapter to start from changes the model"
    if start is None:
        return Finding(part="model", tried=tried, verdict="not applicable", detail="model.train.start is not given")
    try:
        file = lora_place.find(Path(start))
        weights = lora_file.plain(file)
    except ModelError as error:
        return Finding(part="model", tried=tried, verdict="failed", detail=str(error))
    moved = {name for name, value in weights.items() if value.is_floating_point() and bool(value.any())}
    up = [name for name in moved if (down := _down(name)) != name and (down in moved or down not in weights)]
    return judged(
        "model",
        tried,
        bool(up),
        f"{len(up)} of the products that it adds are not zero" if up else f"every product that {file} adds is zero",
        "get the file again, ask its authors, or leave model.train.start out",
    )


def _down(name: str) -> str:
    """Return the name of the matrix that is multiplied with the one of this name; the same name for any other."""
    for up, down in (("lora_B", "lora_A"), ("lora_up", "lora_down"), (".up.", ".down.")):
        if up in name:
            return name.replace(up, down)
    return name


def trained(
    run: config.Run, shown: Callable[[str, np.ndarray], None] = lambda prompt, images: None
) -> Iterator[Finding]:
    """Sample two images of a prompt, which `shown` gets, and make one update on them. Raises a PcpoError."""
    device = device_here()
    prompt = prompts.sources(run)[0].batch(1, 1)[0]
    torch.set_num_threads(run.workers.samplers.threads)
    sampler = Sampler(run, device)
    task = Task(step=1, position=0, prompt=prompt, images=IMAGES, version=0, purpose="train")
    trajectory, images = sampler.sample(task)
    assert trajectory is not None
    trajectory = trajectory.to(torch.device("cpu"))
    del sampler
    shown(prompt.text, images)
    apart = float(np.abs(images[0].astype(np.float64) - images[1]).mean())
    flat = [n for n in range(IMAGES) if images[n].min() == images[n].max()]
    yield judged(
        "model",
        "two images are sampled and decoded",
        not flat and apart > 0,
        f"{images.shape[2]} x {images.shape[1]} pixels, {apart:.1f} levels apart",
        "the images are of one colour or equal: is the VAE the model's own, and model.dtype one that it can bear?",
    )
    torch.set_num_threads(run.workers.learner.threads)
    learner = Learner(run, device)
    update = learner.update(1, [(0, trajectory, [1.0, -1.0])])
    yield judged(
        "model",
        "the first log-ratio is 0",
        update.first_log_ratio == 0,
        f"{update.first_log_ratio:.3g}",
        "learner and sampler do not compute the same; set optimizer.mixed_precision=no",
    )
    if update.mismatch is not None:
        yield judged(
            "model",
            "sampler and learner predict alike",
            update.mismatch["rms"] <= run.objective.max_mismatch,
            f"log-ratio {update.mismatch['rms']:.3g} (rms)",
            "more than rounding explains: leave out sampling.compile",
        )
    yield judged(
        "model",
        "one update moves the weights",
        update.moved_fraction > 0 and update.skipped == 0,
        f"{update.moved_fraction:.0%} of the trained weights changed, gradient norm {update.gradient_norm:.3g}",
        "raise optimizer.learning_rate, or set model.dtype=float32: its steps may be smaller than the dtype's spacing",
    )
