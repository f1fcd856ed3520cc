"""The words world's oracle as a reward: how like the font's own the letters are, and which colours are shown."""

from typing import Literal, assert_never

import numpy as np
from jaxtyping import UInt8

from pcpo_ray.rewards.oracle import Oracle


class WordsOracle(Oracle):
    """The overlap of the image's ink with the word in the font (`words_letters`), 0..1.

    `words_colours` is the fraction of the colours that the caption names which the image shows, 0..1.
    """

    def __init__(self, kind: Literal["words_letters", "words_colours"]) -> None:
        self.kind = kind

    @staticmethod
    def reads(prompt: str) -> bool:
        from pcpo_ray.words.captions import is_caption

        return is_caption(prompt)

    def _score(self, image: UInt8[np.ndarray, "H W 3"], prompt: str) -> float:
        from pcpo_ray.words import oracle

        match self.kind:
            case "words_letters":
                return oracle.letters(image, prompt)
            case "words_colours":
                return oracle.colours(image, prompt)
            case _:
                assert_never(self.kind)
