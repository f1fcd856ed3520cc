"""Fréchet distance between two sets of images, each modelled as a normal distribution in feature space.

It is equation 6 of Heusel et al. 2017 (arXiv 1706.08500), in any feature space as in Stein et al. 2023
(arXiv 2306.04675):

    |mu_1 - mu_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2))
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Normal:
    """A set's mean (E,) and a root of its covariance, root^T root = S, with as few rows R as possible."""

    mean: Float[np.ndarray, " E"]
    root: Float[np.ndarray, "R E"]


def normal(features: Float[np.ndarray, "N E"]) -> Normal:
    """Fit a normal distribution to N images; the covariance is divided by N - 1, as in FID."""
    features = np.asarray(features, np.float64)
    mean = features.mean(axis=0)
    root = np.asarray(np.linalg.qr((features - mean) / np.sqrt(len(features) - 1), mode="r"))
    return Normal(mean, root)


def distance(one: Normal, other: Normal) -> float:
    """Compute the Fréchet distance: 0 for equal sets, biased upwards by about 1 / N, so compare at equal N only.

    tr (S_1 S_2)^(1/2) is the sum of the singular values of root_1 root_2^T. No covariance is multiplied out, so sets
    with fewer images than feature dimensions lose no precision.
    """
    shared = np.linalg.svd(one.root @ other.root.T, compute_uv=False).sum()
    apart = np.square(one.mean - other.mean).sum()
    found = apart + np.square(one.root).sum() + np.square(other.root).sum() - 2 * shared
    return float(max(0.0, found))
