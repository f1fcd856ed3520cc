"""Human Preference Score v2 (arXiv 2306.09341): the cosine of a fine-tuned ViT-H-14, about 0.2..0.4."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from pcpo_ray import config
from pcpo_ray.errors import RewardError
from pcpo_ray.rewards import clip, published

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Hps:
    """HPS v2.0 or v2.1, which differ only in their weights file."""

    def __init__(self, weights: str, architecture: str, device: torch.device) -> None:
        import open_clip

        clip.check_architecture(architecture)
        network = open_clip.create_model(architecture, load_weights=False, device=device)
        try:
            network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True)["state_dict"])
        except Exception as error:  # a truncated file raises whatever torch's reader raises
            raise RewardError(
                f"HPS weights {weights} cannot be loaded into {architecture}: {str(error)[:400]}; "
                "expected HPS_v2.1_compressed.pt or HPS_v2_compressed.pt of xswu/HPSv2"
            ) from error
        clip.check_finite(network, f"HPS weights {weights}")
        network.eval()
        size = network.visual.image_size
        side = size[0] if isinstance(size, tuple) else size
        self.clip = clip.Clip(
            network=network,
            scale=float(network.logit_scale.detach().exp()),
            device=device,
            preprocess=lambda image: preprocess(image, side),
            tokenize=open_clip.get_tokenizer(architecture),
            encode_images=network.encode_image,
            encode_texts=network.encode_text,
        )
        self.networks = [network]

    @staticmethod
    def check(reward: config.Hps) -> None:
        """Check that the weights are this version's, for an architecture with GELU. Raises RewardError."""
        clip.check_file(reward.weights, "HPS weights (HPS_v2.1_compressed.pt or HPS_v2_compressed.pt)")
        clip.check_architecture(reward.architecture)
        for kind, file in reward.published.items():
            if Path(reward.weights).name == file and kind != reward.kind:
                raise RewardError(f"{reward.weights} is the file of {kind}, not {reward.kind}; write kind: {kind}")
        if reward.architecture.endswith(published.TWIN):
            raise RewardError(
                f"{reward.kind} was trained with GELU, and {reward.architecture} has QuickGELU; write "
                f"architecture: {reward.architecture.removesuffix(published.TWIN)}"
            )

    def score(self, images: UInt8[np.ndarray, "N H W 3"], prompts: Sequence[str]) -> list[float]:
        return clip.cosines(self.clip, images, prompts)


def preprocess(image: Any, side: int) -> Float[Tensor, "3 side side"]:
    """Preprocess as HPS does: scale the longest side to `side`, pad the other with black, then normalise.

    open_clip's transform for the same network crops the image instead.
    """
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional

    pixels = functional.pil_to_tensor(image).float() / 255
    height, width = pixels.shape[1:]
    scale = side / max(height, width)
    height, width = round(height * scale), round(width * scale)
    pixels = functional.resize(pixels, [height, width], interpolation=InterpolationMode.BICUBIC, antialias=True)
    above, before = (side - height) // 2, (side - width) // 2
    padded = functional.pad(pixels, [before, above, side - width - before, side - height - above])
    normalised: Tensor = functional.normalize(padded, list(MEAN), list(STD))
    return normalised
