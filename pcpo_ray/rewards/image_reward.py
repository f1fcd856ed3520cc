"""ImageReward (arXiv 2304.05977), for `serve.py` in an environment of its own: its package needs old transformers.

    pip install image-reward clip-anytorch "setuptools<81" "transformers<4.56"
    python serve.py image_reward:Scorer --option model=ImageReward.pt --option med_config=med_config.json

Scores are standardised, about -2..2. This file needs only that package and Pillow.
"""

from collections.abc import Sequence

import numpy as np


class Scorer:
    """ImageReward from `model`, the file ImageReward.pt of THUDM/ImageReward, and `med_config`, its med_config.json."""

    def __init__(self, model: str, med_config: str, device: str = "cpu") -> None:
        import ImageReward

        self.model = ImageReward.load(model, device=device, med_config=med_config)

    def score(self, images: np.ndarray, prompts: Sequence[str]) -> list[float]:
        from PIL import Image

        # the argument order is (prompt, image); a list of images would be ranked against one prompt
        pairs = zip(prompts, images, strict=True)
        return [float(self.model.score(prompt, Image.fromarray(image))) for prompt, image in pairs]
