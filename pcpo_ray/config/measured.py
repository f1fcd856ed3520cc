"""Rewards that measure an image's pixels, without a network and whatever the prompt."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Le

from pcpo_ray.config.base import NUMBER, Number, config
from pcpo_ray.config.shipped import Ranks, Scale, Scales, ShippedReward


@config
class Jpeg(ShippedReward):
    """The size of the JPEG file in kB, negative for compressibility."""

    scorer = "pcpo_ray.rewards.jpeg:Jpeg"
    network = "none"
    reads_prompt = False
    worse = "neither"
    scales: ClassVar[Scales] = {
        "jpeg_compressibility": Scale("-kB", "minus the image's size as a JPEG: higher means smaller, plainer images"),
        "jpeg_incompressibility": Scale("kB", "the image's size as a JPEG: higher means more detail, or more noise"),
    }

    kind: Literal["jpeg_compressibility", "jpeg_incompressibility"]
    weight: Number = 1.0
    """Its factor in the sum of all rewards; below 0 it is trained against."""
    quality: Annotated[int, Ge(1), Le(100), NUMBER] = 95
    """The quality that the JPEG is written with."""

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The sign of the size, and the JPEG's quality."""
        return {"sign": -1 if self.kind == "jpeg_compressibility" else 1, "quality": self.quality}

    @property
    def ranks(self) -> Ranks:
        """Plain images make small files."""
        return "plain" if self.kind == "jpeg_compressibility" else "marred"


@config
class Grain(ShippedReward):
    """The grain of the image's surfaces in levels of 0..255 (rewards/grain.py), whatever the image shows."""

    scorer = "pcpo_ray.rewards.grain:Grain"
    network = "none"
    reads_prompt = False
    scales: ClassVar[Scales] = {
        "grain": Scale(
            "levels", "how rough the image's surfaces are, as noise of so many levels of 0 to 255 would make them"
        ),
    }

    kind: Literal["grain"]
    weight: Number = 1.0
    """Its factor in the sum of all rewards; below 0 it is trained against."""

    @property
    def ranks(self) -> Ranks:
        """Images with noise on them."""
        return "marred"


@config
class Grid(ShippedReward):
    """The strength of regular lines such as grids and tile seams, in levels of 0..255: for evaluation.rewards."""

    scorer = "pcpo_ray.rewards.grid:Grid"
    network = "none"
    reads_prompt = False
    worse = "more"
    scales: ClassVar[Scales] = {
        "grid": Scale("levels", "how strong the image's regular lines are, such as grids and seams of tiles"),
    }

    kind: Literal["grid"]
    weight: Number = 1.0
    """Its factor in the sum of all rewards; below 0 it is trained against."""

    @property
    def ranks(self) -> Ranks:
        """Images with a grid on them."""
        return "marred"
