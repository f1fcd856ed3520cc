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

    @property
    def is_fraction(self) -> bool:
        """True for a fraction of something, which a reader takes in as a percentage."""
        return self.unit.startswith("fraction of ")


Scales = Mapping[str, Scale]
Worse = Literal["less", "more", "neither"]
Ranks = Literal["own", "plain", "marred", "none"]
"""Images that a reward must score higher: those of their own prompts, plain ones, or those with noise and a grid."""
Network = Literal["none", "clip", "other"]


@dataclass(frozen=True)
class ClipModel:
    """A CLIP model that a reward loads: `model` and `weights` as in its config.

    Rewards with the same `label` share one model in memory.
    """

    model: str
    weights: str | None
    label: str


@dataclass(frozen=True)
class Extra:
    """An extra of this package that installs what a reward imports, and the modules that it brings."""

    name: str
    modules: tuple[str, ...]


class ShippedReward:
    """The base of every shipped reward; its kind names its scores.

    `scorer` is the path of the class that scores, built with `arguments`, and with the device if `on_device`; then it
    names its `networks`. `scales` has an entry for each kind. `network` says what `pcpo-ray plan` can know of the
    reward's memory: "clip" measures `clip`, "other" is reported as unknown. `worse` is the direction in which the
    monitors watch an untrained reward. `compares_images` refuses groups of one image. `extra` is what has to be
    installed for it. `reads_prompt` and `ranks` are what `pcpo-ray check` tries.
    """

    scorer: ClassVar[str]
    scales: ClassVar[Scales]
    network: ClassVar[Network]
    worse: ClassVar[Worse] = "less"
    extra: ClassVar[Extra | None] = None
    reads_prompt: ClassVar[bool | None] = True

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
    def compares_images(self) -> bool:
        """True for a reward that compares the images of a group with each other."""
        return False

    @property
    def ranks(self) -> Ranks:
        """The images that it must score higher than others."""
        return "none"

    @property
    def on_device(self) -> bool:
        """True for a network that torch runs."""
        return self.network != "none" and self.extra is None

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
