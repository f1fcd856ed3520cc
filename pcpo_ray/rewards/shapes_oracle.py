"""The embedded world's oracle as a reward: does the picture show what the caption says?"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8


class ShapesOracle:
    """The share of the caption's facts that hold, 0..1; with `all_facts`, 1 where all hold and else 0.

    Raises PromptError for a prompt outside the embedded world's grammar.
    """

    def __init__(self, *, all_facts: bool) -> None:
        self.all_facts = all_facts

    def score(self, images: UInt8[np.ndarray, "N H W 3"], prompts: Sequence[str]) -> list[float]:
        from pcpo_ray.shapes.oracle import judge

        verdicts = [judge(image, prompt) for image, prompt in zip(images, prompts, strict=True)]
        return [float(verdict.right) if self.all_facts else verdict.accuracy for verdict in verdicts]
