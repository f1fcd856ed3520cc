"""Predictions to compare, and the surrogates that are taken of them."""

import torch

from pcpo_ray.algorithm.objective import clipped_ratio, log_hinge

XI = 1e-4
"""The clip range that the paper's tests use."""

LOSSES = {"clipped_ratio": clipped_ratio, "log_hinge": log_hinge}


def draws(seed=0, *, shape=(5, 3, 8, 8), change=0.05):
    """Draw a prediction, the old one, and the noise, in float64."""
    generator = torch.Generator().manual_seed(seed)
    old, noise, d = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    return old + change * d, old, noise
