"""The base of the shipped rewards: what each declares of its scorer, its scores and its network."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal


@dataclass(frozen=True)
class Scale:
    """The unit of a reward's scores, and what a score means, in a reader's words."""

    unit: str
    meaning: str


Scales = Mapping[str, Scale]
Network = Literal["none", "clip", "other"]


@dataclass(frozen=True)
class ClipModel:
    """A CLIP model that a reward loads: `model` and `weights` as in its config.

    Rewards with the same `label` share one model in memory.
    """

    model: str
    weights: str | None
    label: str


class ShippedReward:
    """The base of every shipped reward; its kind names its scores.

    `scorer` is the path of the class that scores, built with `arguments`, and with the device unless `network` is
    "none". `scales` has an entry for each kind. `network` says what `pcpo-ray plan` can know of the reward's memory:
    "clip" measures `clip`, "other" is reported as unknown. `less_is_worse` makes the monitors watch an untrained reward
    for a fall. `compares_images` refuses groups of one image.
    """

    scorer: ClassVar[str]
    scales: ClassVar[Scales]
    network: ClassVar[Network]
    less_is_worse: ClassVar[bool] = True
    compares_images: ClassVar[bool] = False

    kind: str

    @property
    def name(self) -> str:
        """The name of the scores."""
        return self.kind

    @property
    def scale(self) -> Scale:
        """The unit and the meaning of the scores."""
        return self.scales[self.kind]

    @property
    def clip(self) -> ClipModel | None:
        """The CLIP model that the scorer loads, if any."""
        return None

    @property
    def memory_is_known(self) -> bool:
        """False for a network that is not built from its config alone."""
        return self.network != "other"

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The scorer's arguments: all keys but those that say which reward it is and how it counts."""
        others = ("kind", "weight", "label")
        keys = [found.name for found in dataclasses.fields(self) if found.name not in others]  # type: ignore[arg-type]
        return {key: getattr(self, key) for key in keys}


class Embedded(ShippedReward):
    """The base of shipped rewards on the embeddings of a CLIP model that the user may choose."""

    network = "clip"

    model: str
    weights: str | None

    @property
    def clip(self) -> ClipModel:
        """The CLIP model that `model` and `weights` name, shared by all rewards that name it."""
        return ClipModel(self.model, self.weights, self.model)
