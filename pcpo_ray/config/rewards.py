"""The rewards: one class for each scorer that the package ships, and one for classes of the user's own.

A shipped reward is declared here once. Its scorer, unit, meaning and CLIP model are read from its class wherever they
are needed: to build it, to plan its memory, to check its files, and in the report.
"""

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, ClassVar, Literal

from pcpo_ray.config.base import (
    ByKind,
    FilePath,
    Label,
    NameOrPath,
    NonNegative,
    Number,
    Options,
    OwnKind,
    Seconds,
    Unit,
    Url,
    VariableName,
    check_server,
    config,
    kinds,
    members,
)
from pcpo_ray.config.judge import Judge
from pcpo_ray.config.measured import Grain, Grid, Jpeg
from pcpo_ray.config.oracles import ShapesOracle, WordsOracle, WordsSpread
from pcpo_ray.config.packaged import DdddOcr, Nsfw, Ocr
from pcpo_ray.config.shipped import ClipModel, Embedded, Ranks, Scale, Scales, ShippedReward

TOTAL = "reward"
"""The name of the weighted sum of a run's rewards, which stands beside their own names."""

OUR_NAMES = (TOTAL, "step", "prompt", "position", "sample", "version", "worker", "advantage", "quality", "described")
"""Names that no reward may have: they stand beside the rewards' names in a run's tables and messages."""

OWN_SCALE = Scale("score", "a reward of the user's own")


@config
class ClipScore(Embedded):
    """The cosine between image and prompt in a CLIP model.

    An architecture of open_clip needs a `weights` file.
    """

    scorer = "pcpo_ray.rewards.clip_score:ClipScore"
    scales: ClassVar[Scales] = {
        "clip_score": Scale("cosine", "how well image and prompt agree, to a CLIP model"),
    }

    kind: Literal["clip_score"]
    weight: Number = 1.0
    """Its factor in the sum of all rewards; below 0 it is trained against."""
    model: NameOrPath = "shapes-clip"
    """A shipped name, a folder in open_clip's or transformers' format, or an architecture of open_clip."""
    weights: FilePath | None = None
    """The weights file of an architecture of open_clip."""

    @property
    def ranks(self) -> Ranks:
        """Images of their own prompts."""
        return "own"


@config
class Diversity(Embedded):
    """The mean feature distance (1 - cosine, open_clip) to the other images of the same prompt."""

    scorer = "pcpo_ray.rewards.diversity:Diversity"
    reads_prompt = False
    worse = "neither"  # diversity has a monitor of its own
    scales: ClassVar[Scales] = {
        "diversity": Scale(
            "1 - cosine", "how far an image is from the others of its prompt: near 0 they all look alike"
        ),
    }

    kind: Literal["diversity"]
    weight: Number = 1.0
    """Its factor in the sum of all rewards; below 0 it is trained against."""
    model: NameOrPath = "shapes-clip"
    """A shipped name, a folder in open_clip's or transformers' format, or an architecture of open_clip."""
    weights: FilePath | None = None
    """The weights file of an architecture of open_clip."""

    @property
    def compares_images(self) -> bool:
        """True: it is the distance between images."""
        return True


@config
class Aesthetic(Embedded):
    """The LAION aesthetic predictor, on the CLIP ViT-L-14 of OpenAI."""

    scorer = "pcpo_ray.rewards.aesthetic:Aesthetic"
    reads_prompt = False
    scales: ClassVar[Scales] = {
        "aesthetic": Scale(
            "1 to 10", "how much people would like the image, whatever the prompt, to LAION's predictor"
        ),
    }

    kind: Literal["aesthetic"]
    head: FilePath
    """The predictor's .pth file."""
    weight: Number = 1.0
    """Its factor in the sum of all rewards; below 0 it is trained against."""
    model: NameOrPath = "ViT-L-14-quickgelu"
    """The CLIP model: OpenAI's ViT-L-14, as a folder or an architecture of open_clip."""
    weights: FilePath | None = None
    """The weights file of an architecture of open_clip."""


@config
class PickScore(ShippedReward):
    """PickScore, a CLIP ViT-H-14 that was trained on people's choices."""

    scorer = "pcpo_ray.rewards.pickscore:PickScore"
    network = "clip"
    scales: ClassVar[Scales] = {
        "pickscore": Scale("about 18 to 24", "which image people would pick for the prompt, to PickScore"),
    }

    kind: Literal["pickscore"]
    model: FilePath
    """The folder of PickScore_v1."""
    weight: Number = 1.0
    """Its factor in the sum of all rewards; below 0 it is trained against."""
    processor: FilePath | None = None
    """The folder of its CLIP ViT-H-14's processor; null: it is in `model`."""

    @property
    def clip(self) -> ClipModel:
        """The fine-tuned CLIP that PickScore is."""
        return ClipModel(self.model, None, self.model)

    @property
    def ranks(self) -> Ranks:
        """Images of their own prompts."""
        return "own"


@config
class Hps(ShippedReward):
    """Human Preference Score, of either version."""

    scorer = "pcpo_ray.rewards.hps:Hps"
    network = "clip"
    scales: ClassVar[Scales] = {
        "hps_v2.1": Scale("about 0.2 to 0.4", "which image people would prefer for the prompt, to HPS v2.1"),
        "hps_v2.0": Scale("about 0.2 to 0.4", "which image people would prefer for the prompt, to HPS v2.0"),
    }
    published: ClassVar[Mapping[str, str]] = {
        "hps_v2.1": "HPS_v2.1_compressed.pt",
        "hps_v2.0": "HPS_v2_compressed.pt",
    }
    """The authors' file for each kind; the files have the same shapes."""

    kind: Literal["hps_v2.1", "hps_v2.0"]
    weights: FilePath
    """HPS_v2.1_compressed.pt or HPS_v2_compressed.pt."""
    weight: Number = 1.0
    """Its factor in the sum of all rewards; below 0 it is trained against."""
    architecture: str = "ViT-H-14"
    """The architecture of open_clip that the weights are of."""

    @property
    def clip(self) -> ClipModel:
        """The fine-tuned CLIP that HPS is, never shared with another reward."""
        return ClipModel(self.architecture, self.weights, f"{self.architecture} ({self.name})")

    @property
    def ranks(self) -> Ranks:
        """Images of their own prompts."""
        return "own"


@config
class Remote(ShippedReward):
    """A scorer behind HTTP (rewards/remote.py)."""

    network = "none"
    reads_prompt = None
    scales: ClassVar[Scales] = {"remote": OWN_SCALE}

    kind: Literal["remote"]
    url: Url
    """The scorer's address."""
    weight: Number = 1.0
    """Its factor in the sum of all rewards; below 0 it is trained against."""
    label: Label = "remote"
    """The name of its scores."""
    timeout: Seconds = 60.0
    """The longest that an answer may take."""
    patience: Annotated[NonNegative, Unit("seconds")] = 300.0
    """The longest that the server may be away, as while it restarts."""
    token: VariableName | None = None
    """The environment variable that holds the server's token, set where scorers run; null: none."""
    format: Literal["json", "npz"] = "json"
    """The format in which images are sent: JSON, or numpy's compressed arrays."""
    group: bool = False
    """True if the server's class compares the images of a group (score_group)."""

    def __post_init__(self) -> None:
        check_server(self.url, "token")

    @property
    def scorer(self) -> str:  # type: ignore[override]
        """The class that asks: about a whole group, or about images each by itself."""
        return f"pcpo_ray.rewards.remote:{'GroupRemote' if self.group else 'Remote'}"

    @property
    def compares_images(self) -> bool:
        """True for a server that compares the images of a group."""
        return self.group

    @property
    def name(self) -> str:
        """The name of the scores."""
        return self.label

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The scorer's arguments; `group` says which one it is."""
        return {key: value for key, value in super().arguments.items() if key != "group"}


@config
class CustomReward:
    """A class of the user's own: `kind` is `package.module:Class`, built with `options`."""

    kind: OwnKind
    weight: Number = 1.0
    """Its factor in the sum of all rewards; below 0 it is trained against."""
    options: Options = field(default_factory=dict)
    """Keyword arguments of your class."""
    label: Label | None = None
    """The name of its scores; null: the name of the class."""

    @property
    def name(self) -> str:
        """The name of the scores."""
        return self.label or self.kind.rpartition(":")[2]

    @property
    def scale(self) -> Scale:
        """The unit and the meaning of the scores, which the package does not know."""
        return OWN_SCALE


Reward = Annotated[
    Jpeg
    | ClipScore
    | ShapesOracle
    | WordsOracle
    | WordsSpread
    | Grain
    | Grid
    | Diversity
    | Aesthetic
    | PickScore
    | Hps
    | Ocr
    | DdddOcr
    | Nsfw
    | Judge
    | Remote
    | CustomReward,
    ByKind(),
]

SHIPPED_REWARDS: Mapping[str, type[ShippedReward]] = {
    kind: cls for cls in members(Reward) if issubclass(cls, ShippedReward) for kind in kinds(cls)
}
"""The config class of each shipped kind, as `Reward` lists them."""
