"""A world: what the pretraining of its models needs to know of its captions and images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Split = Literal["train", "held_out"]
Shares = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Bar:
    """The end of a base model's training, and how far it is drawn back, so that something is left to learn.

    It is trained until nearly all is right. What is kept is a mixture of those weights and of earlier ones, in which
    less is right: weights that are merely stopped there are rougher, and alignment improves them less.
    """

    good: float
    """The fraction of images right in all at which training ends."""
    early: float
    """The fraction up to which the weights of a look are remembered, as the earlier ones."""
    kept: float
    """The fraction from which on a mixture is kept."""
    count: int
    """The held-out captions of a look."""
    every: int
    """The steps from one look to the next."""
    sampling: Mapping[str, Any]
    """The pipeline's arguments for a look, where they are not measure's own."""


@dataclass(frozen=True, kw_only=True)
class World:
    """A world of captions and images, and the sizes of its models.

    `sample` draws captions of a split, with repetition. `draw` makes an image of height x width pixels of one.
    `told` answers what a caption says, one class per question, of which there are as many as `classes` says.
    `judged` reads images of held-out captions, and says which share is right.
    """

    name: str
    checkpoints: Path
    height: int
    width: int
    vocabulary: tuple[str, ...]
    """The words that are one token each; all others are spelled."""
    letters: int
    """The letters of the longest word that captions spell, about which `told` answers first; 0 if they spell none."""
    sample: Callable[[np.random.Generator, int, Split], list[str]]
    draw: Callable[[str, int], np.ndarray]
    told: Callable[[str], list[int]]
    classes: tuple[int, ...]
    judged: Callable[[Sequence[np.ndarray], Sequence[str]], Shares]
    vae_channels: tuple[int, ...]
    """The width of each level of the VAE, each of half the side of the one before."""
    latent_channels: int
    unet_channels: tuple[int, ...]
    steps: Mapping[str, int]
    """The steps of each model's training, by part."""
    bars: Mapping[str, Bar]
    """The ends of parts that may be trained for fewer steps; parts that are not named take all of theirs."""
    reading_steps: int

    @property
    def spelled(self) -> bool:
        """True if captions spell words, so that T5's tokens must say their own places."""
        return self.letters > 0

    @property
    def latent_size(self) -> tuple[int, int]:
        """The height and width of the latents."""
        factor = 2 ** (len(self.vae_channels) - 1)
        return self.height // factor, self.width // factor

    def images(self, rng: np.random.Generator, texts: Sequence[str]) -> Float[Tensor, "B 3 H W"]:
        """Draw a fresh image of each caption."""
        seeds = rng.integers(2**31, size=len(texts))
        return to_tensor([self.draw(text, int(seed)) for text, seed in zip(texts, seeds, strict=True)])


def to_tensor(images: list[np.ndarray]) -> Float[Tensor, "B 3 H W"]:
    """Images as the networks see them: -1 to 1, channels last in memory (4 times faster on a CPU)."""
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return (batch.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
