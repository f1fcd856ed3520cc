"""Simulated work: networks that sleep instead of computing, so that everything around them is measured.

The rest is real: actors, trajectories, scores, updates, weights. On few cores, real roles would compete for them.
"""

import contextlib
import dataclasses
import functools
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from pcpo_ray import config
from pcpo_ray.commands import session
from pcpo_ray.commands.bench.rows import Say
from pcpo_ray.commands.bench.waiting import DEADLINE
from pcpo_ray.config import files
from pcpo_ray.data.tensors import Conditioning
from pcpo_ray.models.stable_diffusion import StableDiffusion
from pcpo_ray.runs.folder import LocalFolder
from pcpo_ray.training.loop import Loop
from pcpo_ray.training.recorder import Recorder

STEPS = 4
IMAGES = 16


class Sleeping(StableDiffusion):
    """shapes-sd with a network that takes `sample` seconds per image and step, or `learn` with gradients."""

    sample, learn = 0.004, 0.004

    @functools.cached_property
    def trained(self) -> nn.Parameter:
        """A trained parameter, cached: looking it up takes longer than the rest of a prediction here."""
        return next(iter(self.trainable().values()))

    def encode_one(self, text: str) -> Conditioning:
        return self.fixed_text()

    def forward(
        self, latents: Float[Tensor, "B C h w"], timesteps: Float[Tensor, " B"], conditioning: Conditioning
    ) -> Float[Tensor, "B C h w"]:
        time.sleep(len(latents) * (self.learn if torch.is_grad_enabled() else self.sample))
        return 0.0 * latents + self.trained.mean()  # the gradient must reach a parameter

    def decode(self, latents: Float[Tensor, "B C h w"]) -> UInt8[np.ndarray, "B H W 3"]:
        return np.zeros((len(latents), self.height, self.width, 3), np.uint8)


class Sampling(Sleeping):
    """A model that learns quickly, so that a step waits for samplers."""

    learn = 0.0005


class Sleeper:
    """A reward that takes so many seconds per group; it prefers later images of a group."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def score(self, images: UInt8[np.ndarray, "N H W 3"], prompts: Sequence[str]) -> list[float]:
        time.sleep(self.seconds)
        return [float(place) for place in range(len(images))]


def run(denoiser: type[Sleeping], *, samplers: int, prompts: int, scoring: float) -> config.Run:
    """Make a run of simulated work: `prompts` groups of `IMAGES`, `scoring` seconds per group."""
    return files.parse(
        {
            "name": "simulated",
            "steps": 1,
            "model": {
                "kind": "custom",
                "denoiser": f"{denoiser.__module__}:{denoiser.__name__}",
                "family": "diffusion",
                "path": "shapes-sd",
            },
            "prompts": {"kind": "shapes"},
            "sampling": {"steps": STEPS, "process": {"kind": "ddim"}},
            "rewards": [{"kind": f"{__name__}:{Sleeper.__name__}", "options": {"seconds": scoring}}],
            "credit": {"kind": "reweight"},
            "advantage": {"kind": "group"},
            "objective": {"kind": "log_hinge", "clip_range": 1e-3},
            "rollout": {"prompts": prompts, "images": IMAGES, "max_staleness": 1},  # the most that is measured
            "evaluation": {"count": 1, "images": 2, "every": 10**6},
            "checkpoints": {"every": 10**6, "keep": 1},
            "workers": {
                "samplers": {"workers": samplers, "cpus": 0.1},
                "scorers": {"cpus": 0.1},
                "learner": {"cpus": 0.1},
                "task_timeout": DEADLINE,
                "start_timeout": DEADLINE,
            },
        }
    )


@contextlib.contextmanager
def looped(run: config.Run, say: Say, *, local: bool = False) -> Iterator[Loop]:
    """Make a loop over the run's own workers, on Ray unless `local`; its folder is deleted afterwards."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as ending:
        recorder = Recorder.create(LocalFolder(local=Path(folder) / run.name), run)
        ending.callback(recorder.close)
        stages = session.stages(run, local=local, say=say)
        ending.callback(stages.close)
        prompts, held_out = session.sources(run)
        yield Loop(run, stages, recorder, prompts=prompts, held_out=held_out)


def steps(loop: Loop, count: int, *, staleness: int, prompts: int) -> list[float]:
    """Make the loop's next steps, with so many groups per batch and batches ahead, and return the seconds of each."""
    progress = loop.progress
    progress.max_staleness = staleness
    progress.begun.clear()  # batches of another size, begun for steps after the last one
    rollout = dataclasses.replace(loop.run.rollout, prompts=prompts)
    longer = dataclasses.replace(loop.run, steps=progress.step + count, rollout=rollout)
    for part in (loop, loop.admission, loop.batches, loop.control, loop.checkpointer, loop.evaluator):
        part.run = longer
    loop.train()
    rows = [row for row in loop.recorder.metrics() if row["kind"] == "train"]
    return [row["seconds"] for row in rows[-count:]]
