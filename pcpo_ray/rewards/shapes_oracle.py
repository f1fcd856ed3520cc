"""The shapes world's oracle as a reward: the fraction of the caption's facts that the image shows."""

from typing import Literal, assert_never

import numpy as np
from jaxtyping import UInt8

from pcpo_ray.rewards.oracle import Oracle


class ShapesOracle(Oracle):
    """The fraction of the caption's facts that hold, 0..1 (`shapes_oracle`).

    `shapes_oracle_all` is 1 if all facts hold, else 0. `shapes_layout` counts only facts of layout: count, relation and
    position. The oracle identifies a caption's two objects by their descriptions, so relations are between these.
    """

    def __init__(self, kind: Literal["shapes_oracle", "shapes_oracle_all", "shapes_layout"]) -> None:
        self.kind = kind

    @staticmethod
    def reads(prompt: str) -> bool:
        from pcpo_ray.shapes.captions import is_caption

        return is_caption(prompt)

    def _score(self, image: UInt8[np.ndarray, "H W 3"], prompt: str) -> float:
        from pcpo_ray.shapes.oracle import judge

        verdict = judge(image, prompt)
        match self.kind:
            case "shapes_oracle_all":
                return float(verdict.right)
            case "shapes_layout":
                return verdict.layout
            case "shapes_oracle":
                return verdict.accuracy
            case _:
                assert_never(self.kind)
