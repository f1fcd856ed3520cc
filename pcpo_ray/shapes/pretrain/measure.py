"""How good a base model is: the oracle's verdict on pictures of held-out captions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pcpo_ray.shapes.oracle import judge
from pcpo_ray.shapes.pretrain.data import sample_captions


def accuracy(pipeline: Any, count: int, seed: int = 1, **options: Any) -> tuple[float, float]:
    """Over `count` held-out captions: share of pictures that are right in all facts, and mean share of facts right."""
    texts = sample_captions(np.random.default_rng(seed), count, split="held_out")
    pipeline.set_progress_bar_config(disable=True)
    pictures = pipeline(texts, generator=torch.Generator().manual_seed(seed), output_type="np", **options).images
    verdicts = [
        judge((picture * 255).round().astype("uint8"), text) for picture, text in zip(pictures, texts, strict=True)
    ]
    return float(np.mean([v.right for v in verdicts])), float(np.mean([v.accuracy for v in verdicts]))
