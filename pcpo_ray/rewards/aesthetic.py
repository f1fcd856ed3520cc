"""The LAION aesthetic score (sac+logos+ava1-l14-linearMSE): linear layers on a CLIP embedding of unit length, 1..10."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import UInt8
from torch import nn

from pcpo_ray.errors import RewardError
from pcpo_ray.rewards import clip


class Aesthetic:
    """Five linear layers without activations; the dropout between them is for training only.

    The embedding has unit length: without that, scores look plausible and are wrong.
    """

    def __init__(self, model: str, weights: str | None, head: str, device: torch.device) -> None:
        self.clip = clip.load(model, weights, device)
        self.head = load_head(head).to(device)

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


def layers(width: int) -> nn.Sequential:
    """The head for embeddings of so many numbers, with random weights."""
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
    """The layers of the authors' file. Raises RewardError."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        head = layers(state["layers.0.weight"].shape[1])
        head.load_state_dict({name.removeprefix("layers."): weight for name, weight in state.items()})
    except Exception as error:  # a file cut short raises whatever torch's reader raises
        raise RewardError(
            f"aesthetic head {path} cannot be loaded: {str(error)[:400]}; "
            "expected the layers of sac+logos+ava1-l14-linearMSE.pth"
        ) from error
    return head.float().eval()
