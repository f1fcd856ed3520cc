"""The data that travels between the stages: Prompt, Task, Trajectory, Rollout, Scored, and Handle for large data.

Shapes: N images of one prompt (a group), K trained timesteps, `...` one image's latents.
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

Size = tuple[int, int]
"""An image's height and width in pixels."""

QUALITY = "quality"
"""The name under which a group is reported as missing if its images could not be measured."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A text, its index in its source, and the size of its images (None: the config's)."""

    index: int
    text: str
    size: Size | None = None


@dataclass(frozen=True, kw_only=True)
class Task:
    """One group to sample. With the run's seed and the weights of `version` it fixes every bit of the result.

    `step` is the training step that the group belongs to; in evaluations it is 0, so that all of them draw the same
    noise. `position` is its place in the batch. Only a task with the `purpose` train has a trajectory. `averaged` asks
    for the EMA of the version's weights. `more` are the evaluation's prompts at the next positions, each with as many
    images of the same size; all of them go through the network together.
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
        """All prompts of the task, in the order of their positions."""
        return (self.prompt, *self.more)

    @property
    def texts(self) -> list[str]:
        """The prompt text of each image, one entry per image."""
        return [prompt.text for prompt in self.prompts for _ in range(self.images)]

    @property
    def weights(self) -> tuple[int, bool]:
        """The key of the weights to sample with: the version, and whether its EMA is meant."""
        return self.version, self.averaged


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """The trained timesteps of one group. Raises TrainingError if shapes disagree.

    `steps` are indices into the sampler's T timesteps. `predictions` are the network's own, after guidance. `log_probs`
    are means over the latents' dimensions. `conditioning` has one row. `size` is the prompt's. `weights` are those of
    credit that is measured on the trajectory; None where credit is known before. `clean` are the final latents where
    pairs are noised images, else None.
    """

    steps: Int[Tensor, " K"]
    latents: Float[Tensor, "N K ..."]
    predictions: Float[Tensor, "N K ..."]
    noises: Float[Tensor, "N K ..."]
    log_probs: Float[Tensor, "N K"]
    conditioning: Conditioning
    size: Size | None = None
    weights: Float[Tensor, "N K"] | None = None
    clean: Float[Tensor, "N ..."] | None = None

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
        if self.weights is not None and self.weights.shape != shape[:2]:
            raise TrainingError(f"trajectory: weights {tuple(self.weights.shape)}; expected {tuple(shape[:2])}")

    def __len__(self) -> int:
        return len(self.latents)

    @property
    def bytes(self) -> int:
        """The bytes that its tensors hold."""
        tensors = (*self._tensors().values(), *self.conditioning.values())
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def to(self, device: torch.device) -> "Trajectory":
        """Copy the trajectory to a device."""
        moved = {name: sent_to(tensor, device) for name, tensor in self._tensors().items()}
        texts = {name: sent_to(row, device) for name, row in self.conditioning.items()}
        return Trajectory(**moved, conditioning=texts, size=self.size)

    def _tensors(self) -> dict[str, Any]:
        found = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("conditioning", "size")}
        return {name: tensor for name, tensor in found.items() if tensor is not None}


@dataclass(frozen=True, kw_only=True)
class Handle:
    """A reference to large data that stays where it was made, until a stage that needs it opens the handle.

    `rows` are the rows of an array that the handle means (None: all).
    """

    reference: Any
    rows: slice | None = None


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """A sampled group: its task, handles of its trajectory (None when evaluating) and images, and its worker.

    `checksum` is the checksum of the weights it was sampled with, computed by the sampler from its own parameters.
    `bytes` is the size of trajectory and images. `lent` is true if the worker is one of the learner's ranks.
    """

    task: Task
    trajectory: Handle | None
    images: Handle
    bytes: int
    checksum: str
    seconds: float
    worker: str
    lent: bool = False


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A rollout with each reward's scores, one an image, and the causes of missing ones. Missing is NaN, never 0.

    `measured` holds the features for an evaluation's quality (quality/), if the config asks for it. `described` is what
    rewards that say so saw in an evaluation's images. `tokens` are those that each judge used, by kind.
    """

    rollout: Rollout
    scores: Mapping[str, Sequence[float]]
    failures: Mapping[str, str]
    seconds: float
    measured: Mapping[str, np.ndarray] = field(default_factory=dict)
    described: Mapping[str, Sequence[str]] = field(default_factory=dict)
    tokens: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @property
    def missing(self) -> bool:
        """True if a score or the measured quality is missing."""
        return QUALITY in self.failures or any(np.isnan(values).any() for values in self.scores.values())

    def total(self, weights: Mapping[str, float]) -> np.ndarray:
        """Compute the weighted sum of the rewards named in `weights`, one value an image."""
        terms = [weight * np.asarray(self.scores[name], np.float64) for name, weight in weights.items()]
        summed: np.ndarray = np.sum(terms, axis=0)
        return summed
