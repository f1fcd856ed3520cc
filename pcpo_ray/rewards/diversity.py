"""Diversity within a prompt: an image's mean feature distance to the other images of the same prompt."""

import numpy as np
import torch
from jaxtyping import UInt8

from pcpo_ray import config
from pcpo_ray.rewards import clip


class Diversity:
    """Mean of 1 - cosine between an open_clip model's image embeddings; NaN for a group's only image."""

    def __init__(self, model: str, weights: str | None, device: torch.device) -> None:
        self.clip = clip.load(model, weights, device)
        self.networks = [self.clip.network]

    @staticmethod
    def check(reward: config.Diversity) -> None:
        """Check that the CLIP model's files exist and fit. Raises RewardError."""
        clip.check(reward.model, reward.weights)

    def score_group(self, images: UInt8[np.ndarray, "N H W 3"], prompt: str) -> list[float]:
        features = self.clip.images(images).double()
        distances = (1 - features @ features.T).fill_diagonal_(0)
        return [float(value) for value in distances.sum(dim=1) / (len(images) - 1)]
