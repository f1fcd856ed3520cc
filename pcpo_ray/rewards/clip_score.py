"""CLIP score: the cosine between image and prompt, without logit scale, about 0..1."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import UInt8

from pcpo_ray import config
from pcpo_ray.rewards import clip


class ClipScore:
    """The reward cos(image, prompt)."""

    def __init__(self, model: str, weights: str | None, device: torch.device) -> None:
        self.clip = clip.load(model, weights, device)
        self.networks = [self.clip.network]

    @staticmethod
    def check(reward: config.ClipScore) -> None:
        """Check that the CLIP model's files exist and fit. Raises RewardError."""
        clip.check(reward.model, reward.weights)

    def score(self, images: UInt8[np.ndarray, "N H W 3"], prompts: Sequence[str]) -> list[float]:
        return clip.cosines(self.clip, images, prompts)
