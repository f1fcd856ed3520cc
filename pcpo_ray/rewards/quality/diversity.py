"""Diversity of the images of one prompt."""

from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8

from pcpo_ray import config
from pcpo_ray.errors import QualityError
from pcpo_ray.rewards import clip
from pcpo_ray.rewards.quality.features import CHUNK, Measure, check_file


def vendi(features: Float[np.ndarray, "N E"]) -> float:
    """Compute the Vendi score, an effective number of different images: 1 if all N are equal, N if all are unlike.

    It is the exponential of the entropy of the eigenvalues of K / N, where K are cosines (Friedman and Dieng 2022,
    arXiv 2210.02410, definition 3.1).
    """
    unit = _unit(features)
    shares = np.linalg.svd(unit / np.sqrt(len(unit)), compute_uv=False) ** 2  # the eigenvalues of unit unit^T / N
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def pairwise(features: Float[np.ndarray, "N E"]) -> float:
    """Compute the mean of 1 - cosine over the pairs of N >= 2 images."""
    unit = _unit(features)
    upper = np.triu_indices(len(unit), 1)
    return float(1 - (unit @ unit.T)[upper].mean())


def _unit(features: Float[np.ndarray, "N E"]) -> Float[np.ndarray, "N E"]:
    features = np.asarray(features, np.float64)
    unit: np.ndarray = features / np.linalg.norm(features, axis=1, keepdims=True)
    return unit


LPIPS_FILES = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth"}
"""File names of torchvision's ImageNet weights of each net."""


def check_lpips(lpips: config.Lpips) -> None:
    """Raise QualityError unless the weights' file exists."""
    check_file(lpips.weights, "evaluation.quality.lpips.weights", f"torchvision's {LPIPS_FILES[lpips.net]}")


def load_lpips(lpips: config.Lpips, device: torch.device) -> Measure:
    """Load the mean LPIPS (Zhang et al. 2018, arXiv 1801.03924) of each image to the N - 1 others. Raises QualityError.

    The linear layers come with torchmetrics, their backbone from `weights`.
    """
    check_lpips(lpips)
    from torchmetrics.functional.image.lpips import _LPIPS

    network = _LPIPS(pretrained=True, net=lpips.net, pnet_rand=True)
    try:
        saved = torch.load(Path(lpips.weights), map_location="cpu", weights_only=True)
        backbone = {name: saved[f"features.{name.split('.', 1)[1]}"] for name in network.net.state_dict()}
        network.net.load_state_dict(backbone)
        clip.check_finite(network, lpips.weights)
    except Exception as error:  # a truncated file, or another net's
        raise QualityError(
            f"evaluation.quality.lpips.weights is {lpips.weights}, which is not torchvision's "
            f"{LPIPS_FILES[lpips.net]}: {type(error).__name__}: {error}"
        ) from error
    network = network.to(device).eval()

    @torch.inference_mode()
    def distances(images: UInt8[np.ndarray, "N H W 3"]) -> Float[np.ndarray, " N"]:
        pixels = torch.from_numpy(images.copy()).permute(0, 3, 1, 2).to(device) / 127.5 - 1
        pairs = torch.tensor(list(combinations(range(len(images)), 2)), device=device)
        found = [network(pixels[part[:, 0]], pixels[part[:, 1]]).flatten() for part in pairs.split(CHUNK)]
        each = torch.zeros(len(images), device=device)
        each.index_add_(0, pairs.T.flatten(), torch.cat([*found, *found]))
        mean: np.ndarray = (each / (len(images) - 1)).cpu().numpy()
        return mean

    return Measure(network, distances)
