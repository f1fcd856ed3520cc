"""Feature spaces: networks' embeddings of images, in which distances are meaningful.

The Fréchet distance in Inception's features is FID (Heusel et al. 2017, arXiv 1706.08500), in DINOv2's FD-DINO (Stein
et al. 2023, arXiv 2306.04675: it agrees best with people). All weights are local files: nothing is downloaded.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from pcpo_ray import config
from pcpo_ray.errors import QualityError, RewardError
from pcpo_ray.rewards import clip, published
from pcpo_ray.rewards.images import rgb

CHUNK = 64
"""Images per pass through a network."""

DINO_SIDE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's mean and std per channel."""

Features = config.ClipFeatures | config.InceptionFeatures | config.DinoFeatures
Extractor = Callable[[UInt8[np.ndarray, "N H W 3"]], Float[np.ndarray, "N ..."]]
"""A function from images to E float32 numbers each, or to one."""


@dataclass(frozen=True)
class Measure:
    """A `network`, and what it `extracts` from images."""

    network: nn.Module
    extracts: Extractor

    def __call__(self, images: UInt8[np.ndarray, "N H W 3"]) -> Float[np.ndarray, "N ..."]:
        return self.extracts(images)


def check(features: Features) -> None:
    """Check, without loading a network, that its files exist. Raises QualityError."""
    match features:
        case config.ClipFeatures(model=model, weights=weights):
            try:
                clip.check(model, weights)
            except RewardError as error:
                raise QualityError(f"evaluation.quality.features: {error}") from None
        case config.InceptionFeatures(weights=weights):
            check_file(
                weights,
                "evaluation.quality.features.weights",
                "weights-inception-2015-12-05-6726825d.pth of torch-fidelity's release v0.2.0",
            )
        case config.DinoFeatures(model=model):
            path = Path(model) / "config.json"
            kind = _model_type(path) if path.is_file() else None
            if kind != "dinov2":
                raise QualityError(
                    f"evaluation.quality.features.model is {model}, with "
                    + (f"a model of type {kind!r}" if path.is_file() else "no config.json")
                    + "; expected a folder of DINOv2 in transformers' format; download facebook/dinov2-large"
                )
            try:
                published.check_folder(Path(model))
            except RewardError as error:
                raise QualityError(f"evaluation.quality.features: {error}") from None
        case _:
            assert_never(features)


def check_file(path: str, where: str, what: str) -> None:
    """Raise QualityError unless the file exists and is no git-lfs pointer."""
    if not Path(path).is_file():
        raise QualityError(f"{where} is {path}, which is no file; download {what} and give its path")
    if found := published.fault(Path(path)):
        raise QualityError(f"{where}: {found}")


def _model_type(path: Path) -> str | None:
    try:
        found: str | None = json.loads(path.read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError) as error:
        raise QualityError(f"{path} is not a config: {error}; copy it again from the model it belongs to") from None
    return found


def load(features: Features, device: torch.device) -> Measure:
    """Load the extractor. Raises QualityError."""
    check(features)
    try:
        match features:
            case config.ClipFeatures(model=model, weights=weights):
                found = clip.load(model, weights, device)
                return Measure(found.network, lambda images: found.images(images).cpu().numpy())
            case config.InceptionFeatures(weights=weights):
                return _inception(weights, device)
            case config.DinoFeatures(model=model):
                return _dino(model, device)
            case _:
                assert_never(features)
    except Exception as error:  # a truncated file raises whatever its format's reader raises
        raise QualityError(f"evaluation.quality.features cannot be loaded from {features}: {error}") from error


def files(features: Features) -> list[Path]:
    """List the files that the network's weights are read from."""
    match features:
        case config.ClipFeatures(model=model, weights=weights):
            name, file = clip.locate(model, weights)
            return [Path(file)] if file is not None else sorted(Path(name.removeprefix("local-dir:")).iterdir())
        case config.InceptionFeatures(weights=weights):
            return [Path(weights)]
        case config.DinoFeatures(model=model):
            return sorted(Path(model).iterdir())
        case _:
            assert_never(features)


def _chunked(network: nn.Module, extract: Callable[[np.ndarray], Tensor]) -> Measure:
    @torch.inference_mode()
    def whole(images: UInt8[np.ndarray, "N H W 3"]) -> Float[np.ndarray, "N E"]:
        parts = [extract(images[start : start + CHUNK]) for start in range(0, len(images), CHUNK)]
        found: np.ndarray = torch.cat(parts).float().cpu().numpy()
        return found

    return Measure(network, whole)


def _inception(weights: str, device: torch.device) -> Measure:
    """Load the network of the original FID, with its own resizing to 299 x 299."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=weights)
    clip.check_finite(network, weights)
    network = network.to(device).eval()
    return _chunked(network, lambda images: network(torch.from_numpy(images.copy()).permute(0, 3, 1, 2).to(device))[0])


def _dino(folder: str, device: torch.device) -> Measure:
    """Load DINOv2: the class token after the last norm, for images resized to 224 x 224, as in Stein et al."""
    from torchvision.transforms import v2
    from transformers import Dinov2Model

    network, found = Dinov2Model.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    absent = [*found["missing_keys"], *found["mismatched_keys"]]
    if absent:
        raise QualityError(f"its weights lack {len(absent)} of the model's parameters, such as {sorted(absent)[:3]}")
    clip.check_finite(network, folder)
    network = network.to(device).eval()
    prepare = v2.Compose(
        [
            v2.Resize((DINO_SIDE, DINO_SIDE), interpolation=v2.InterpolationMode.BICUBIC),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )

    def extract(images: np.ndarray) -> Tensor:
        pixels = torch.stack([prepare(image) for image in rgb(images)])
        tokens: Tensor = network(pixel_values=pixels.to(device)).pooler_output
        return tokens

    return _chunked(network, extract)
