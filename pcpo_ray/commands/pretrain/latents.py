"""Latents of drawn images, encoded once: what the two base models are trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pcpo_ray.commands.pretrain import vae
from pcpo_ray.commands.pretrain.world import World

IMAGES = 40_000
CHUNK = 250


@dataclass(frozen=True, kw_only=True)
class Latents:
    """Images as the VAE sees them, in half precision, and their captions."""

    latents: Float[Tensor, "N C H W"]
    captions: list[str]

    def sample(
        self, rng: np.random.Generator, count: int, *, dropped: float = 0.0
    ) -> tuple[Float[Tensor, "B C H W"], list[str]]:
        """`count` images' latents and captions, of which a share is replaced by the empty one (for guidance)."""
        indices = rng.integers(len(self.captions), size=count)
        empty = rng.random(count) < dropped
        texts = ["" if gone else self.captions[index] for index, gone in zip(indices, empty, strict=True)]
        return self.latents[torch.from_numpy(indices)].float(), texts


def encode(world: World, out: Path, seed: int, images: int = IMAGES) -> Latents:
    """Draw and encode images with the trained VAE of `out`. The same seed gives the same latents."""
    rng = np.random.default_rng(seed)
    encoder = vae.load(world, out)
    captions: list[str] = []
    latents: list[Tensor] = []
    with torch.no_grad():
        while len(captions) < images:
            texts = world.sample(rng, min(CHUNK, images - len(captions)), "train")
            latents.append(encoder.encode(world.images(rng, texts)).latent_dist.mean.half())
            captions += texts
    return Latents(latents=torch.cat(latents), captions=captions)
