"""Fidelity and variety against a reference, by k-nearest-neighbour balls in feature space.

Precision and recall: Kynkäänniemi et al. 2019 (arXiv 1904.06991); density and coverage: Naeem et al. 2020
(arXiv 2002.09797), more robust to outliers. A ball is centred on an image and reaches to its k-th nearest neighbour in
its own set. An image on a ball's surface is inside for precision and recall, and outside for density and coverage, as
in the authors' code of each (and dgm-eval's): a set against itself has density 1, and ties count as published.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

ROWS = 1024
"""Images whose distances to all others are in memory at once."""


def radii(features: Float[Tensor, "N E"], k: int) -> Float[Tensor, " N"]:
    """Compute each image's distance to its k-th nearest neighbour in the same set."""
    return torch.cat(
        [_distances(rows, features).kthvalue(k + 1, dim=1).values for rows in features.split(ROWS)]
    )  # the nearest is the image itself, at 0


def compare(made: Float[np.ndarray, "N E"], reference: Float[np.ndarray, "M E"], k: int) -> dict[str, float]:
    """Compute precision, recall, density and coverage of N images against M of a reference; N and M exceed k."""
    ours, theirs = (torch.from_numpy(np.asarray(values, np.float64)) for values in (made, reference))
    our_radii, their_radii = radii(ours, k), radii(theirs, k)
    precise, balls, held = [], [], torch.zeros(len(theirs), dtype=torch.bool)
    near = torch.full((len(theirs),), torch.inf, dtype=torch.float64)
    for rows, reach in zip(ours.split(ROWS), our_radii.split(ROWS), strict=True):
        distances = _distances(rows, theirs)
        precise.append((distances <= their_radii).any(dim=1))
        balls.append((distances < their_radii).sum(dim=1))
        held |= (distances <= reach[:, None]).any(dim=0)
        near = torch.minimum(near, distances.amin(dim=0))
    return {
        "precision": float(torch.cat(precise).double().mean()),
        "recall": float(held.double().mean()),
        "density": float(torch.cat(balls).double().mean() / k),
        "coverage": float((near < their_radii).double().mean()),
    }


def _distances(rows: Float[Tensor, "R E"], others: Float[Tensor, "M E"]) -> Float[Tensor, "R M"]:
    return torch.cdist(rows, others, compute_mode="donot_use_mm_for_euclid_dist")  # the other mode is imprecise near 0
