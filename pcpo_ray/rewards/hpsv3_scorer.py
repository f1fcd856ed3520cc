"""HPSv3 (arXiv 2508.03789), for `serve.py` in an environment of its own: its package needs transformers 4.45.2.

    pip install hpsv3==1.0.0 tensorboard matplotlib fastapi uvicorn
    python serve.py hpsv3_scorer:Scorer --option checkpoint=HPSv3.safetensors

This file needs only those packages and Pillow. The base model, Qwen/Qwen2-VL-7B-Instruct, is taken from the hub's cache
or fetched. A score is the first of the two numbers that the model gives, a mean; the other is its uncertainty.
"""

from collections.abc import Sequence

import numpy as np


class Scorer:
    """HPSv3 from `checkpoint`, the file HPSv3.safetensors of MizzenAI/HPSv3; None fetches it."""

    def __init__(self, checkpoint: str | None = None, device: str = "cuda") -> None:
        from hpsv3 import HPSv3RewardInferencer

        self.model = HPSv3RewardInferencer(checkpoint_path=checkpoint, device=device)

    def score(self, images: np.ndarray, prompts: Sequence[str]) -> list[float]:
        import torch
        from PIL import Image

        scores = []
        with torch.no_grad():
            for image, prompt in zip(images, prompts, strict=True):
                # by name: 1.0.0 takes (images, prompts), later commits (prompts, images); one by one, as prompts of
                # other lengths would be padded, which changes the last bits
                both = self.model.reward(image_paths=[Image.fromarray(image)], prompts=[prompt])
                scores.append(float(both[0][0]))  # the mean; the other is its uncertainty
        return scores
