"""Conversion of image arrays to PIL images, the input of every reward's original."""

import io
from typing import TYPE_CHECKING

import numpy as np

from pcpo_ray.errors import RewardError

if TYPE_CHECKING:
    from PIL import Image


def rgb(images: np.ndarray) -> "list[Image.Image]":
    """Convert (N, H, W) grey, (N, H, W, 3) RGB or (N, H, W, 4) RGBA bytes to RGB images; alpha is dropped, not blended.

    Raises RewardError for anything else.
    """
    from PIL import Image

    array = np.asarray(images)
    if array.dtype != np.uint8 or not (array.ndim == 3 or (array.ndim == 4 and array.shape[3] in (3, 4))):
        raise RewardError(
            f"got images of {array.dtype} {array.shape}; expected uint8 of (N, H, W), (N, H, W, 3) or (N, H, W, 4)"
        )
    return [Image.fromarray(image).convert("RGB") for image in array]


def png(image: "Image.Image") -> bytes:
    """Encode an image as PNG."""
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()
