"""Rewards that look at images of the embedded worlds without a network: the oracles', and the spread of words."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pcpo_ray.config.base import Number, config
from pcpo_ray.config.shipped import Ranks, Scale, Scales, ShippedReward


@config
class ShapesOracle(ShippedReward):
    """The fraction of the caption's facts that the image shows; 1 only if all hold; or the fraction of layout facts.

    Layout is how many things there are, and the caption's relation or position. What the things are, their colour and
    their size are no part of it.
    """

    scorer = "pcpo_ray.rewards.shapes_oracle:ShapesOracle"
    network = "none"
    scales: ClassVar[Scales] = {
        "shapes_oracle": Scale(
            "fraction of facts", "the fraction of the prompt's facts that the image shows, as measured in it"
        ),
        "shapes_oracle_all": Scale("fraction of images", "1 where the image shows every fact of the prompt, else 0"),
        "shapes_layout": Scale(
            "fraction of facts", "the fraction of the prompt's facts on number and place that the image shows"
        ),
    }

    kind: Literal["shapes_oracle", "shapes_oracle_all", "shapes_layout"]
    weight: Number = 1.0
    """Its factor in the sum of all rewards; below 0 it is trained against."""

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The kind, which says which of the three scores it is."""
        return {"kind": self.kind}

    @property
    def ranks(self) -> Ranks:
        """Images of their own prompts."""
        return "own" if self.kind != "shapes_layout" else "none"


@config
class WordsOracle(ShippedReward):
    """The likeness of the word's letters to the font's own; or the fraction of the caption's colours that are shown.

    Neither is what OCR sees: a run that is trained on OCR may lose both.
    """

    scorer = "pcpo_ray.rewards.words_oracle:WordsOracle"
    network = "none"
    scales: ClassVar[Scales] = {
        "words_letters": Scale(
            "overlap", "how like the font's own the letters of the prompt's word are, at the place where they fit best"
        ),
        "words_colours": Scale("fraction of colours", "the fraction of the prompt's colours that the image shows"),
    }

    kind: Literal["words_letters", "words_colours"]
    weight: Number = 1.0
    """Its factor in the sum of all rewards; below 0 it is trained against."""

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The kind, which says which of the two scores it is."""
        return {"kind": self.kind}

    @property
    def ranks(self) -> Ranks:
        """Images of their own prompts."""
        return "own"


@config
class WordsSpread(ShippedReward):
    """The distance of the word's place from those of the prompt's other images; or that of its colours.

    For evaluation.rewards: a run that puts every word at one place, or in one colour, loses them.
    """

    scorer = "pcpo_ray.rewards.words_spread:WordsSpread"
    network = "none"
    reads_prompt = False
    scales: ClassVar[Scales] = {
        "words_places": Scale("pixels", "how far the word stands from its place in the prompt's other images"),
        "words_tones": Scale(
            "levels", "how far ink and paper are from those of the prompt's other images, in levels of 0 to 255"
        ),
    }

    kind: Literal["words_places", "words_tones"]
    weight: Number = 1.0
    """Its factor in the sum of all rewards; below 0 it is trained against."""

    @property
    def compares_images(self) -> bool:
        """True: it is the distance between images."""
        return True

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The kind, which says whether places or colours are compared."""
        return {"kind": self.kind}
