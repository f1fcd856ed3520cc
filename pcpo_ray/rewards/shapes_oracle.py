"""The embedded world's oracle as a reward: the fraction of the caption's facts that the image shows."""

from collections.abc import Sequence
from typing import Literal, assert_never

import numpy as np
from jaxtyping import UInt8


class ShapesOracle:
    """The fraction of the caption's facts that hold, 0..1 (`shapes_oracle`).

    `shapes_oracle_all` is 1 if all facts hold, else 0. `shapes_layout` counts only facts of layout: count, relation and
    position. The oracle identifies a caption's two objects by their descriptions, so relations are between these.

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
