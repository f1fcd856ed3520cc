"""From latents to pixels: the VAE's factors, and decoding it in parts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pcpo_ray.config import Model
from pcpo_ray.errors import ModelError
from pcpo_ray.models import described


def in_parts(vae: Any, model: Model, folder: Path) -> None:
    """Have the VAE decode in tiles and slices as the config asks. Raises ModelError if it cannot."""
    for asked, name in ((model.vae_tiling, "tiling"), (model.vae_slicing, "slicing")):
        if not asked:
            continue
        try:
            getattr(vae, f"enable_{name}")()
        except (AttributeError, NotImplementedError):
            raise ModelError(
                f"model.vae_{name} is true, and the VAE of {folder} is a {type(vae).__name__}, which has no "
                f"{name}; set model.vae_{name}=false"
            ) from None


def unscaled(config: Any, latents: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
    """Undo the scaling that a VAE's config describes: std and mean by channel, one factor, one shift."""
    mean, std, shift = (getattr(config, key, None) for key in described.FACTORS)
    if std is not None:
        latents = latents * by_channel(std, latents)
    latents = latents / getattr(config, "scaling_factor", 1)
    if mean is not None:
        latents = latents + by_channel(mean, latents)
    if shift:
        latents = latents + shift
    return latents


def by_channel(values: Sequence[float] | Tensor, latents: Float[Tensor, "B C h w"]) -> Float[Tensor, "1 C 1 1"]:
    """Shape one number a channel to multiply or add to latents."""
    return torch.as_tensor(values, device=latents.device, dtype=latents.dtype).reshape(1, -1, 1, 1)


def shown(decoded: Float[Tensor, "B ..."]) -> Float[Tensor, "B 3 H W"]:
    """Return images of what a VAE decodes: the first frame of a video, on white where it is transparent."""
    images = decoded[:, :, 0] if decoded.ndim == 5 else decoded
    if images.shape[1] == 3:
        return images
    opacity = images[:, 3:] / 2 + 0.5
    return images[:, :3] * opacity + (1 - opacity)
