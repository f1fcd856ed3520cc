"""CLIP score: the cosine between picture and prompt in an open_clip model, without logit scale, about 0..1."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from pcpo_ray.errors import ModelError, RewardError


def locate(model: str, weights: str | None) -> tuple[str, str | None]:
    """open_clip's name for the model, and its weights file (None where the model's folder holds them).

    `model` is a shipped name, a folder with open_clip_config.json, or an architecture of open_clip's, such as ViT-L-14,
    together with `weights`, a file. Raises RewardError.
    """
    if weights is not None:
        if not Path(weights).is_file():
            raise RewardError(f"no CLIP weights at {weights}; download the checkpoint of {model} and give its path")
        import open_clip

        if model not in open_clip.list_models():
            raise RewardError(f"open_clip has no architecture {model!r}; `open_clip.list_models()` names them")
        return model, weights
    folder = Path(model)
    if "/" not in model and not folder.exists():
        from pcpo_ray import shapes

        try:
            folder = shapes.checkpoint(model)
        except ModelError as error:
            raise RewardError(f"{error}; for an architecture of open_clip's, give its `weights` file too") from None
    if not (folder / "open_clip_config.json").is_file():
        raise RewardError(f"CLIP model {model!r}: no open_clip_config.json in {folder}; expected open_clip's format")
    return f"local-dir:{folder}", None


@dataclass(frozen=True, kw_only=True)
class Clip:
    """An open_clip model, its own preprocessing and its tokenizer."""

    model: Any
    preprocess: Callable[[Any], Tensor]
    tokenizer: Callable[[Sequence[str]], Tensor]
    device: torch.device

    @torch.inference_mode()
    def images(self, images: UInt8[np.ndarray, "N H W 3"]) -> Float[Tensor, "N E"]:
        """Embeddings of unit length."""
        from PIL import Image

        pixels = torch.stack([self.preprocess(Image.fromarray(image)) for image in images])
        embedded: Tensor = self.model.encode_image(pixels.to(self.device), normalize=True)
        return embedded

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Float[Tensor, "N E"]:
        """Embeddings of unit length; a text that occurs twice is encoded once."""
        distinct = list(dict.fromkeys(texts))
        embedded = self.model.encode_text(self.tokenizer(distinct).to(self.device), normalize=True)
        rows: Tensor = embedded[[distinct.index(text) for text in texts]]
        return rows


@lru_cache(maxsize=2)
def load(model: str, weights: str | None, device: torch.device) -> Clip:
    """The model, once a process, however many rewards use it. Raises RewardError."""
    import open_clip

    name, file = locate(model, weights)
    try:
        network, preprocess = open_clip.create_model_from_pretrained(name, pretrained=file, device=device)
        tokenizer = open_clip.get_tokenizer(name)
    except Exception as error:  # a file cut short raises whatever its own format's reader raises
        raise RewardError(f"CLIP model {model!r} cannot be loaded: {error}") from error
    return Clip(model=network.eval(), preprocess=preprocess, tokenizer=tokenizer, device=device)


class ClipScore:
    """cos(picture, prompt)."""

    def __init__(self, model: str, weights: str | None, device: torch.device) -> None:
        self.clip = load(model, weights, device)

    def score(self, images: UInt8[np.ndarray, "N H W 3"], prompts: Sequence[str]) -> list[float]:
        cosines = (self.clip.images(images) * self.clip.texts(prompts)).sum(dim=1)
        return [float(value) for value in cosines]
