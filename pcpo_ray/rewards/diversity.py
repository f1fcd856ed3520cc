"""Diversity within a prompt: an image's mean feature distance to the other images of the same prompt."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import UInt8

from pcpo_ray import config
from pcpo_ray.rewards import clip


class Diversity:
    """Mean of 1 - cosine between an open_clip model's image embeddings; NaN for a prompt's only image."""

    def __init__(self, model: str, weights: str | None, device: torch.device) -> None:
        self.clip = clip.load(model, weights, device)

    @staticmethod
    def check(reward: config.Diversity) -> None:
        """Check that the CLIP model's files exist and fit. Raises RewardError."""
        clip.check(reward.model, reward.weights)

    def score(self, images: UInt8[np.ndarray, "N H W 3"], prompts: Sequence[str]) -> list[float]:
        features = self.clip.images(images).double()
        same = torch.tensor([[a == b for b in prompts] for a in prompts], device=features.device).fill_diagonal_(False)
        distances = (1 - features @ features.T) * same
        return [float(value) for value in distances.sum(dim=1) / same.sum(dim=1)]
