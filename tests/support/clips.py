"""Images and prompts for the rewards that are CLIP models."""

import numpy as np
from PIL import Image

RNG = np.random.default_rng(0)
TEXTS = ["a red circle above a blue square", "a small green ring", "a star"]


def noise(height, width, channels=3, count=1):
    """Smooth images: on white noise, resampling filters differ by little."""
    small = RNG.integers(0, 256, size=(count, 6, 5, channels), dtype=np.uint8)
    return np.stack(
        [
            np.dstack(
                [
                    np.asarray(Image.fromarray(image[..., c]).resize((width, height), Image.Resampling.BILINEAR))
                    for c in range(channels)
                ]
            )
            for image in small
        ]
    )


IMAGES = noise(40, 40, count=3)
