"""PickScore v1 (arXiv 2305.01569): exp(logit_scale) cos(image, prompt), about 18..24."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import UInt8

from pcpo_ray.rewards import clip


class PickScore:
    """PickScore of each image with its own prompt; some codebases divide it by 26."""

    def __init__(self, model: str, processor: str | None, device: torch.device) -> None:
        self.clip = clip.load(model, None, device, processor)

    def score(self, images: UInt8[np.ndarray, "N H W 3"], prompts: Sequence[str]) -> list[float]:
        return [self.clip.scale * cosine for cosine in clip.cosines(self.clip, images, prompts)]
