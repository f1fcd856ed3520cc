"""The LAION aesthetic score (sac+logos+ava1-l14-linearMSE): linear layers on a CLIP embedding of unit length, 1..10."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import nn

from pcpo_ray import config
from pcpo_ray.errors import RewardError
from pcpo_ray.rewards import clip, published

OPENAI = "ViT-L-14-quickgelu"
LAION_WIDTH = 768


class Aesthetic:
    """The aesthetic score: five linear layers without activations, as the dropout between them is for training only.

    The embedding has unit length: without that, scores look plausible and are wrong.
    """

    def __init__(self, model: str, weights: str | None, head: str, device: torch.device) -> None:
        check(model, weights, head)
        self.clip = clip.load(model, weights, device)
        self.head = load_head(head).to(device)
        self.networks = [self.clip.network, self.head]

    @staticmethod
    def check(reward: config.Aesthetic) -> None:
        """Check that the files of the CLIP model and the head exist and fit. Raises RewardError."""
        clip.check(reward.model, reward.weights)
        clip.check_file(reward.head, "aesthetic head (sac+logos+ava1-l14-linearMSE.pth)")
        check(reward.model, reward.weights, reward.head)

    @torch.inference_mode()
    def score(self, images: UInt8[np.ndarray, "N H W 3"], prompts: Sequence[str]) -> list[float]:
        features = self.clip.images(images)
        wanted = self.head[0].in_features
        if features.shape[1] != wanted:
            raise RewardError(
                f"the aesthetic head takes embeddings of {wanted}, the CLIP model gives {features.shape[1]}; "
                "use the model that it was trained on (ViT-L-14 of OpenAI)"
            )
        scores: list[float] = self.head(features).squeeze(1).tolist()
        return scores


def check(model: str, weights: str | None, head: str) -> None:
    """Check that LAION's head, which takes 768 numbers, gets them from the CLIP that it was trained on.

    Other CLIP models have 768 too, and would give plausible but wrong scores. Raises RewardError.
    """
    if load_head(head)[0].in_features != LAION_WIDTH:
        return
    wrong = _unlike_openai(model, weights)
    if wrong:
        raise RewardError(
            f"the aesthetic head {head} was trained on OpenAI's ViT-L-14, and {weights or model} is {wrong}; write "
            f"model: {OPENAI} with OpenAI's weights, or the folder of openai/clip-vit-large-patch14"
        )


def _unlike_openai(model: str, weights: str | None) -> str:
    """Say which model it is instead of OpenAI's ViT-L-14; empty if it may be that one."""
    name, file = clip.locate(model, weights)
    if file is not None:
        known = published.check_activation(name, Path(file).absolute())
        if name != OPENAI:
            return f"a {name}"
        return "" if known is None or known.tag in ("", "openai") else known.name
    if name.startswith("local-dir:"):
        path = Path(name.removeprefix("local-dir:")) / "open_clip_config.json"
        described = json.loads(path.read_text(encoding="utf-8"))["model_cfg"]
        vision, quick = described["vision_cfg"], described.get("quick_gelu", False)
    else:
        vision = json.loads((Path(name) / "config.json").read_text(encoding="utf-8")).get("vision_config", {})
        quick = vision.get("hidden_act", "quick_gelu") == "quick_gelu"
    if not quick:
        return "one with GELU, as LAION's are, not QuickGELU"
    size, patch = vision.get("image_size", 224), vision.get("patch_size", 32)
    return "" if (size, patch) == (224, 14) else f"one for images of {size} with patches of {patch}, not 224 and 14"


def layers(width: int) -> nn.Sequential:
    """Build the head for embeddings of this width, with random weights."""
    return nn.Sequential(
        nn.Linear(width, 1024),
        nn.Dropout(0.2),
        nn.Linear(1024, 128),
        nn.Dropout(0.2),
        nn.Linear(128, 64),
        nn.Dropout(0.1),
        nn.Linear(64, 16),
        nn.Linear(16, 1),
    )


def load_head(path: str) -> nn.Sequential:
    """Load the layers from the authors' file. Raises RewardError."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        head = layers(state["layers.0.weight"].shape[1])
        head.load_state_dict({name.removeprefix("layers."): weight for name, weight in state.items()})
    except Exception as error:  # a truncated file raises whatever torch's reader raises
        raise RewardError(
            f"aesthetic head {path} cannot be loaded: {str(error)[:400]}; "
            "expected the layers of sac+logos+ava1-l14-linearMSE.pth"
        ) from error
    clip.check_finite(head, f"aesthetic head {path}")
    return head.float().eval()
