"""What travels between the stages: Prompt, Task, Trajectory, Rollout, Scored; a Handle stands for the large ones.

Shapes: N images of one prompt (a group), K trained steps, `...` one image's latents.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pcpo_ray.data.tensors import Conditioning, sent_to
from pcpo_ray.errors import TrainingError

QUALITY = "quality"
"""What is said to be missing where a group's images could not be measured."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A text and its place in its source."""

    index: int
    text: str


@dataclass(frozen=True, kw_only=True)
class Task:
    """One group to sample. With the run's seed and the weights of `version` it fixes every bit of the result.

    `step` is the update that the group belongs to (for an evaluation: 0, so that every evaluation draws the same
    noise), `position` its place in the batch, `purpose` whether a trajectory is wanted, `averaged` whether it is to be
    sampled with the version's running mean. `more` are an evaluation's prompts at the positions after, each with as
    many images: they go through the network together.
    """

    step: int
    position: int
    prompt: Prompt
    images: int
    version: int
    purpose: Literal["train", "evaluate"]
    averaged: bool = False
    more: tuple[Prompt, ...] = ()

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        return (self.prompt, *self.more)

    @property
    def texts(self) -> list[str]:
        """Of each image, its prompt's."""
        return [prompt.text for prompt in self.prompts for _ in range(self.images)]

    @property
    def weights(self) -> tuple[int, bool]:
        """Those to sample with: the version, and whether it is to be its running mean."""
        return self.version, self.averaged


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """The trained steps of one group. Raises TrainingError where shapes disagree.

    `steps` are indices into the sampler's T steps; `predictions` are the network's own, after guidance;
    `log_probs` are means over the latents' dimensions; `conditioning` has one row.
    """

    steps: Int[Tensor, " K"]
    latents: Float[Tensor, "N K ..."]
    predictions: Float[Tensor, "N K ..."]
    noises: Float[Tensor, "N K ..."]
    log_probs: Float[Tensor, "N K"]
    conditioning: Conditioning

    def __post_init__(self) -> None:
        shape = self.latents.shape
        if self.steps.ndim != 1 or len(shape) < 3 or shape[1] != len(self.steps):
            raise TrainingError(
                f"trajectory: steps {tuple(self.steps.shape)} and latents {tuple(shape)}; expected (K,) and (N, K, ...)"
            )
        for name in ("predictions", "noises"):
            if getattr(self, name).shape != shape:
                raise TrainingError(
                    f"trajectory: {name} {tuple(getattr(self, name).shape)}; expected {tuple(shape)} as latents have"
                )
        if self.log_probs.shape != shape[:2]:
            raise TrainingError(f"trajectory: log_probs {tuple(self.log_probs.shape)}; expected {tuple(shape[:2])}")

    def __len__(self) -> int:
        return len(self.latents)

    @property
    def bytes(self) -> int:
        """What its tensors hold."""
        tensors = [getattr(self, f.name) for f in fields(self) if f.name != "conditioning"]
        return sum(tensor.numel() * tensor.element_size() for tensor in (*tensors, *self.conditioning.values()))

    def to(self, device: torch.device) -> "Trajectory":
        moved = {f.name: sent_to(getattr(self, f.name), device) for f in fields(self) if f.name != "conditioning"}
        return Trajectory(**moved, conditioning={k: sent_to(v, device) for k, v in self.conditioning.items()})


@dataclass(frozen=True, kw_only=True)
class Handle:
    """Stands for something large that stays where it was made; only who needs it opens it.

    `rows` are those that are meant of an array's (None: all).
    """

    reference: Any
    rows: slice | None = None


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """A sampled group: what was asked, where trajectory (None when evaluating) and images are, who made it.

    `checksum` is that of the weights it was sampled with, counted by the sampler over its own parameters; `bytes` is
    what trajectory and images hold.
    """

    task: Task
    trajectory: Handle | None
    images: Handle
    bytes: int
    checksum: str
    seconds: float
    worker: str


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A rollout with each reward's scores (one an image; NaN is missing, never 0) and the causes of missing ones.

    `measured` is what an evaluation's quality is made of (quality/), where that is asked for.
    """

    rollout: Rollout
    scores: Mapping[str, Sequence[float]]
    failures: Mapping[str, str]
    seconds: float
    measured: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def missing(self) -> bool:
        return QUALITY in self.failures or any(np.isnan(values).any() for values in self.scores.values())

    def total(self, weights: Mapping[str, float]) -> np.ndarray:
        """The weighted sum of the rewards named in `weights`, one value an image."""
        terms = [weight * np.asarray(self.scores[name], np.float64) for name, weight in weights.items()]
        summed: np.ndarray = np.sum(terms, axis=0)
        return summed
