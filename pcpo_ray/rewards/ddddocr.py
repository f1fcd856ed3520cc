"""One word that fills the image, read by ddddocr's recogniser (its wheel carries the weights): a second opinion.

Its authors, its training images and its network are others than RapidOCR's. So a run that is trained on `ocr` and only
evaluated by this one shows whether it has learned to write, or what one reader likes.
"""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from pcpo_ray.rewards import ocr_word
from pcpo_ray.rewards.images import rgb

HEIGHT = 64
"""The height in pixels that the network needs."""


class DdddOcr:
    """The reward: 1 where exactly the quoted word is read, else 0. Images are read one after the other."""

    def __init__(self) -> None:
        import ddddocr
        from ddddocr.charsets import CHARSET_BETA

        self.session = _session(Path(ddddocr.__file__).parent / "common.onnx")
        self.characters = CHARSET_BETA

    @staticmethod
    def check_prompts(prompts: Sequence[str], origin: str) -> None:
        """Check that every prompt quotes one word that is short enough. Raises RewardError that names some."""
        ocr_word.check_words("ddddocr", prompts, origin)

    def score(self, images: UInt8[np.ndarray, "N H W 3"], prompts: Sequence[str]) -> list[float]:
        return ocr_word.exact(prompts, self.describe(images, prompts))

    def describe(self, images: UInt8[np.ndarray, "N H W 3"], prompts: Sequence[str]) -> list[str]:
        return [self._text(image) for image in rgb(images)]

    def _text(self, image: Any) -> str:
        """Read one image as ddddocr does, stretched to `HEIGHT` and at least as wide as for the other recogniser."""
        from PIL import Image

        width = max(ocr_word.WIDTH, int(image.width * HEIGHT / image.height))
        grey = image.resize((width, HEIGHT), Image.Resampling.LANCZOS).convert("L")
        given = np.asarray(grey, np.float32)[None, None] / 255
        (found,) = self.session.run(None, {self.session.get_inputs()[0].name: given})
        return "".join(self.characters[place] for place, _ in groupby(found[:, 0].argmax(1).tolist()))  # 0 is ""


def _session(path: Path) -> Any:
    """Open a network with as many threads as torch has here, not with all cores."""
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.log_severity_level = 3  # the file declares a shape of its output that it does not have
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
