"""PickScore v1 (arXiv 2305.01569): exp(logit_scale) cos(image, prompt), about 18..24."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8

from pcpo_ray import config
from pcpo_ray.errors import RewardError
from pcpo_ray.rewards import clip, published


class PickScore:
    """PickScore of each image with its own prompt; some codebases divide it by 26."""

    def __init__(self, model: str, processor: str | None, device: torch.device) -> None:
        self.clip = clip.load(model, None, device, processor)
        self.networks = [self.clip.network]

    @staticmethod
    def check(reward: config.PickScore) -> None:
        """Check that the folders exist, and that the model is PickScore_v1. Raises RewardError."""
        clip.check(reward.model, None)
        if other := published.other_than("PickScore_v1", Path(reward.model).absolute()):
            raise RewardError(f"{reward.model} is {other}, not PickScore_v1; give the folder of that")
        if reward.processor is not None and not Path(reward.processor).is_dir():
            raise RewardError(
                f"no processor at {reward.processor}; expected the folder of laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
            )

    def score(self, images: UInt8[np.ndarray, "N H W 3"], prompts: Sequence[str]) -> list[float]:
        return [self.clip.scale * cosine for cosine in clip.cosines(self.clip, images, prompts)]
