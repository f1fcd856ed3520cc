"""The embedded world's oracle as a reward: does the picture show what the caption says?"""

from collections.abc import Sequence
from typing import Literal, assert_never

import numpy as np
from jaxtyping import UInt8


class ShapesOracle:
    """Of the caption's facts, 0..1: the share that holds; 1 where all hold and else 0 (`shapes_oracle_all`); the share
    that holds of those of layout, which are count, relation and position (`shapes_layout`).

    The oracle tells a caption's two things apart by what they are, so a relation holds between those that it names.
    Raises PromptError for a prompt outside the embedded world's grammar.
    """

    def __init__(self, kind: Literal["shapes_oracle", "shapes_oracle_all", "shapes_layout"]) -> None:
        self.kind = kind

    def score(self, images: UInt8[np.ndarray, "N H W 3"], prompts: Sequence[str]) -> list[float]:
        from pcpo_ray.shapes.oracle import judge

        verdicts = [judge(image, prompt) for image, prompt in zip(images, prompts, strict=True)]
        match self.kind:
            case "shapes_oracle_all":
                return [float(verdict.right) for verdict in verdicts]
            case "shapes_layout":
                return [verdict.layout for verdict in verdicts]
            case "shapes_oracle":
                return [verdict.accuracy for verdict in verdicts]
            case _:
                assert_never(self.kind)
