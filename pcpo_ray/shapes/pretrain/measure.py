"""How good a base model is: the oracle's verdict on pictures of held-out captions."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import torch

from pcpo_ray.shapes.oracle import judge
from pcpo_ray.shapes.pretrain.data import sample_captions


def accuracy(pipeline: Any, count: int, seed: int = 1, **options: Any) -> dict[str, float]:
    """Over `count` held-out captions: share of pictures that are right in `all` facts, then of facts of each kind."""
    texts = sample_captions(np.random.default_rng(seed), count, split="held_out")
    pipeline.set_progress_bar_config(disable=True)
    pictures = pipeline(texts, generator=torch.Generator().manual_seed(seed), output_type="np", **options).images
    held: dict[str, list[bool]] = defaultdict(list)
    for picture, text in zip(pictures, texts, strict=True):
        verdict = judge((picture * 255).round().astype("uint8"), text)
        held["all"].append(verdict.right)
        for fact, holds in verdict.facts.items():
            held[fact.split()[0]].append(holds)
    return {kind: float(np.mean(values)) for kind, values in held.items()}


def summary(shares: dict[str, float]) -> str:
    """`all 47%, count 98%, ...`."""
    return ", ".join(f"{kind} {share:.0%}" for kind, share in shares.items())
