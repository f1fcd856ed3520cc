"""Every config class, on one page. A config is a value: frozen, complete, comparable (files.py reads it)."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform, get_args, get_type_hints
from urllib.parse import urlsplit

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BeforeValidator, Discriminator, StringConstraints, Tag


def _no_truth_value(value: Any) -> Any:
    """YAML reads yes, on and true as True, which pydantic would take for 1."""
    if isinstance(value, bool):
        raise ValueError(f"got {value}; expected a number")
    return value


NUMBER = BeforeValidator(_no_truth_value)
Count = Annotated[int, NUMBER, Ge(1)]
NonNegativeInt = Annotated[int, NUMBER, Ge(0)]
Positive = Annotated[float, NUMBER, Gt(0)]
NonNegative = Annotated[float, NUMBER, Ge(0)]
Fraction = Annotated[float, NUMBER, Ge(0), Lt(1)]

TOTAL = "reward"
"""The name of the weighted sum of a run's rewards, beside their own."""

ROLLOUT_STORE_FRACTION = 0.6
"""Fraction of the object stores that untrained rollouts may fill; weights and transfers need the rest."""

FEWEST = 6
"""Prompts that an interval is from at least: of fewer, chance gives all the same sign in more than 1 case of 20."""

OUR_NAMES = (TOTAL, "step", "prompt", "position", "sample", "version", "worker", "advantage", "quality")
"""What stands beside the rewards' names, in a run's tables and where scores are said to be missing."""

T = TypeVar("T")
STRICT = {"extra": "forbid", "allow_inf_nan": False}


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
def config(cls: type[T]) -> type[T]:
    """A frozen, keyword-only dataclass of which pydantic refuses unknown keys and numbers that are not finite."""
    cls.__pydantic_config__ = STRICT  # type: ignore[attr-defined]
    return dataclass(frozen=True, kw_only=True)(cls)


# -- the model ---------------------------------------------------------------------------------------------------------


@config
class Lora:
    """Low-rank adapters on the layers whose names end in one of `targets`; `init` is how their A is drawn (B is 0).

    `start` is a LoRA to begin from, of the same rank and layers: a run's checkpoint, a file that diffusers reads, or
    PEFT's own folder. What it changes is kept exactly: a scale other than alpha / rank goes into B. The reference of
    objective.kl stays the model without any adapter.
    """

    kind: Literal["lora"] = "lora"
    rank: Count = 16
    alpha: Positive = 16.0
    targets: Annotated[tuple[str, ...], MinLen(1)] = ("to_q", "to_k", "to_v", "to_out.0")
    init: Literal["kaiming", "gaussian"] = "kaiming"
    start: str | None = None


@config
class Full:
    """Every parameter of the denoiser is trained."""

    kind: Literal["full"] = "full"


@config
class Model:
    """A folder in diffusers' format, or the name of a model that the package ships (shapes-sd, shapes-flux).

    `single_file` is a `.safetensors` file in its authors' layout: what it holds is taken from it, everything else, and
    all configs, from `path`. `variant` names the folder's files of weights (fp16: model.fp16.safetensors; null: those
    without a variant). `gradient_checkpointing` computes activations twice instead of keeping them; `vae_tiling` and
    `vae_slicing` decode a tile or a picture at a time. `text_cache` is a folder in which encoded texts are kept, for
    all runs that share it, and workers encode ahead and together (null: each process encodes what it meets). With kind
    custom, `denoiser` is `package.module:Class`, a class of the user's own (models/README.md), and `family` says what
    it predicts.
    """

    kind: Literal["stable_diffusion", "sdxl", "sd3", "flux", "custom"]
    path: str
    single_file: str | None = None
    variant: str | None = None
    denoiser: str | None = None
    family: Literal["diffusion", "flow"] | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    train: Annotated[Lora | Full, Discriminator("kind")] = field(default_factory=Lora)
    gradient_checkpointing: bool = False
    vae_tiling: bool = False
    vae_slicing: bool = False
    text_cache: str | None = None

    def __post_init__(self) -> None:
        own = self.kind == "custom"
        for name in ("denoiser", "family"):
            value = getattr(self, name)
            if (value is not None) != own:
                raise ValueError(
                    f"model.{name} is {value!r} with model.kind={self.kind}; "
                    "give it with model.kind=custom, and only then"
                )
        if self.variant is not None and self.single_file is not None:
            raise ValueError(
                f"model.variant is {self.variant!r}, and model.single_file stands in the place of such files; give one"
            )

    @property
    def flow(self) -> bool:
        """Whether it is a flow-matching model, not a diffusion one."""
        return self.kind in ("sd3", "flux") or self.family == "flow"


# -- prompts -----------------------------------------------------------------------------------------------------------


CaptionForm = Literal["any", "thing", "placed", "related"]


@config
class ShapesPrompts:
    """The captions of the embedded world: all, or of one thing without a place, of one `placed`, of two `related`."""

    kind: Literal["shapes"] = "shapes"
    split: Literal["train", "held_out"] = "train"
    form: CaptionForm = "any"


@config
class PromptFile:
    """A text file (a prompt a line), or CSV, JSON, JSONL or Parquet with a column of prompts."""

    kind: Literal["file"] = "file"
    path: str
    column: str = "prompt"


Prompts = Annotated[ShapesPrompts | PromptFile, Discriminator("kind")]

# -- sampling ----------------------------------------------------------------------------------------------------------


@config
class Ddim:
    """DDIM with `eta` times the DDPM deviation (arXiv 2010.02502)."""

    kind: Literal["ddim"] = "ddim"
    eta: Positive = 1.0


@config
class ConstantNoise:
    """Flow SDE with one noise level at every step (DanceGRPO, arXiv 2505.07818)."""

    kind: Literal["constant_noise"] = "constant_noise"
    eta: Positive = 0.3


@config
class RatioNoise:
    """Flow SDE with noise level a sqrt(t / (1 - t)) (Flow-GRPO, arXiv 2505.05470)."""

    kind: Literal["ratio_noise"] = "ratio_noise"
    a: Positive = 0.7


@config
class CoefficientsPreserving:
    """At every time as much noise as its share, a part of it fresh: the deviation t' sin(eta pi / 2) (Flow-CPS, arXiv
    2509.05952)."""

    kind: Literal["coefficients_preserving"] = "coefficients_preserving"
    eta: Annotated[float, NUMBER, Gt(0), Le(1)] = 0.8


@config
class ProportionateNoise:
    """As coefficients_preserving, with noise at which each step's own weight is `zeta` times the time it covers.

    `zeta` null: the least that all steps can have, and so the most noise. Ours: not in a paper.
    """

    kind: Literal["proportionate_noise"] = "proportionate_noise"
    zeta: Positive | None = None


Process = Annotated[
    Ddim | ConstantNoise | RatioNoise | CoefficientsPreserving | ProportionateNoise, Discriminator("kind")
]


@config
class ShareOfSteps:
    """A random `share` of the trained steps, drawn anew for each group; all of them draw noise (DanceGRPO)."""

    kind: Literal["share"] = "share"
    share: Annotated[float, NUMBER, Gt(0), Le(1)] = 0.6


@config
class Window:
    """`size` trained steps in a row, the same for a whole batch; all other steps of its images are deterministic.

    `sliding` (MixGRPO, arXiv 2507.21802) begins at the first step, moves on by `stride` steps after `every` batches and
    begins again at the end; `random` (Flow-GRPO-Fast) begins anywhere, anew for each batch.
    """

    kind: Literal["window"] = "window"
    size: Count = 4
    order: Literal["sliding", "random"] = "sliding"
    stride: Count = 1
    every: Count = 25

    def __post_init__(self) -> None:
        given = [f"{key} {value}" for key, value in (("stride", self.stride), ("every", self.every))]
        if self.order == "random" and (self.stride, self.every) != (1, 25):
            raise ValueError(f"{' and '.join(given)} with order random, which slides nowhere; leave them out")


@config
class Sampling:
    """How an image is made, in `steps` denoising steps of `height` x `width` pixels (null: the model's own).

    The first `trained_steps` (null: all that draw noise) are trained on, or at each batch a `subset` of them.
    `shared_noise` starts all images of a group from the same noise. `detach_unconditional` keeps the gradient out of
    guidance's unconditional branch (Flow-GRPO). `batch` images go through the network at once (null: a whole group);
    the learner uses the same, so that both compute the same bits. `shift` (flow; null: the model's own scheduler) is
    that of an even grid of times. `storage` is the dtype that trajectories are sampled, kept and compared in.
    """

    steps: Count = 20
    guidance_scale: NonNegative = 1.0
    process: Process
    trained_steps: Count | None = None
    subset: Annotated[ShareOfSteps | Window, Discriminator("kind")] | None = None
    shared_noise: bool = False
    detach_unconditional: bool = False
    height: Count | None = None
    width: Count | None = None
    batch: Count | None = None
    shift: Positive | None = None
    storage: Literal["float32", "bfloat16", "float16"] = "float32"

    def __post_init__(self) -> None:
        if self.trained_steps is not None and self.trained_steps > self.steps:
            raise ValueError(
                f"sampling.trained_steps is {self.trained_steps}, of {self.steps} steps; use at most those"
            )
        if self.detach_unconditional and self.guidance_scale == 1:
            raise ValueError(
                "sampling.detach_unconditional is true with guidance_scale 1, which has no unconditional branch; leave "
                "it out, or guide"
            )


# -- the method --------------------------------------------------------------------------------------------------------


@config
class Native:
    """Each step keeps the weight that its own sampler gives it."""

    kind: Literal["native"] = "native"


@config
class Reweight:
    """Native sampler; every trained step carries the mean of the native weights."""

    kind: Literal["reweight"] = "reweight"


@config
class Released:
    """The plus root at `w_star`, as the authors' code family samples."""

    kind: Literal["released"] = "released"
    w_star: Positive = 4.5


@config
class Variance:
    """The minus root at `w_star` (null: the least feasible one): weights that are literally constant."""

    kind: Literal["variance"] = "variance"
    w_star: Positive | None = None


@config
class Interpolate:
    """Prediction = reference + lambda (policy - reference), every weight being `w_star` (null: the native mean)."""

    kind: Literal["interpolate"] = "interpolate"
    w_star: Positive | None = None


@config
class Proportionate:
    """Flow: each step's weight is proportional to the time it covers (arXiv 2509.25774)."""

    kind: Literal["proportionate"] = "proportionate"


@config
class Tilted:
    """As reweight, for flow as proportionate, times 1 + `slope` at the first trained step to 1 - `slope` at the last.

    Above 0 early, noisy steps count for more, below 0 late ones. Ours: not in a paper.
    """

    kind: Literal["tilted"] = "tilted"
    slope: Annotated[float, NUMBER, Gt(-1), Lt(1)]


Credit = Annotated[
    Native | Reweight | Released | Variance | Interpolate | Proportionate | Tilted, Discriminator("kind")
]


@config
class GroupAdvantage:
    """(score - its group's mean) / deviation of the group, or of the whole batch."""

    kind: Literal["group"] = "group"
    scale: Literal["group", "batch"] = "group"
    correction: Literal[0, 1] = 1
    epsilon: NonNegative = 1e-8
    clip: Positive = 5.0


@config
class HistoryAdvantage:
    """Per-prompt running statistics, the batch's while a prompt has fewer than `minimum` scores (DDPO)."""

    kind: Literal["prompt_history"] = "prompt_history"
    buffer: Count = 32
    minimum: Count = 16
    epsilon: NonNegative = 1e-6
    clip: Positive = 5.0

    def __post_init__(self) -> None:
        if self.minimum > self.buffer:
            raise ValueError(
                f"minimum is {self.minimum} of a buffer of {self.buffer}, which no prompt ever has; use at most that"
            )


@config
class BatchAdvantage:
    """(score - the batch's mean) / the batch's deviation."""

    kind: Literal["batch"] = "batch"
    epsilon: NonNegative = 1e-6
    clip: Positive = 5.0


Advantage = Annotated[GroupAdvantage | HistoryAdvantage | BatchAdvantage, Discriminator("kind")]


@config
class Surrogate:
    """What both surrogates have.

    `clip_scale` weight: each step's clip range is `clip_range` times its weight over the mean weight, as its log-ratio
    spreads in proportion to its weight. `step_loss` noise: each step's loss is multiplied, outside the clip, by its
    noise's deviation over the mean deviation (TempFlow-GRPO, arXiv 2508.04324). `kl` times the KL divergence from the
    reference, the model under the adapter, is added to the loss. `correction` (null: none) weighs what older weights
    sampled by the ratio of the present density to theirs, at most this much (V-trace, arXiv 1802.01561), and takes
    log-ratios against the present weights. `log_ratio` replay is the difference of two log-probabilities of the stored
    latents, as in code that has no decomposed one: rounding makes it differ from 0 at equal weights, so no run is
    stopped for that. For comparisons. `flow_cps` is that of Flow-CPS as published (arXiv 2509.05952), whose
    log-probability leaves out 1 / (2 std^2): 2 std^2 times the decomposed one.
    """

    clip_range: Positive = 1e-4
    clip_scale: Literal["constant", "weight"] = "constant"
    step_loss: Literal["uniform", "noise"] = "uniform"
    kl: NonNegative = 0.0
    correction: Positive | None = None
    log_ratio: Literal["decomposed", "replay", "flow_cps"] = "decomposed"


@config
class ClippedRatio(Surrogate):
    """PPO's clipped ratio."""

    kind: Literal["clipped_ratio"] = "clipped_ratio"


@config
class LogHinge(Surrogate):
    """PCPO's hinge on the log-ratio."""

    kind: Literal["log_hinge"] = "log_hinge"


Objective = Annotated[ClippedRatio | LogHinge, Discriminator("kind")]

# -- rewards -----------------------------------------------------------------------------------------------------------


Label = Annotated[str, StringConstraints(pattern=r"^[^\s\p{C}]+( [^\s\p{C}]+)*$")]
"""The name of a reward's scores, where the user gives it: words with one space between."""


class NamedByKind:
    """What every shipped reward has: its kind is the name of its scores."""

    kind: str

    @property
    def name(self) -> str:
        return self.kind


@config
class Jpeg(NamedByKind):
    """Size of the JPEG file in kB, negative for compressibility."""

    kind: Literal["jpeg_compressibility", "jpeg_incompressibility"]
    weight: Annotated[float, NUMBER] = 1.0
    quality: Annotated[int, NUMBER, Ge(1), Le(100)] = 95


@config
class ClipScore(NamedByKind):
    """Cosine between image and prompt in a CLIP model.

    `model`: a shipped name, a folder in open_clip's or transformers' format, or an architecture of open_clip's together
    with a `weights` file.
    """

    kind: Literal["clip_score"]
    weight: Annotated[float, NUMBER] = 1.0
    model: str = "shapes-clip"
    weights: str | None = None


@config
class ShapesOracle(NamedByKind):
    """The share of the caption's facts that the picture shows; 1 only where all hold; or of its layout's facts alone.

    Layout: how many things there are, and the caption's relation or position; not what they are, nor colour and size.
    """

    kind: Literal["shapes_oracle", "shapes_oracle_all", "shapes_layout"]
    weight: Annotated[float, NUMBER] = 1.0


@config
class Grain(NamedByKind):
    """The grain of the picture's surfaces, in levels of 0..255 (rewards/grain.py), whatever it shows."""

    kind: Literal["grain"]
    weight: Annotated[float, NUMBER] = 1.0


@config
class Diversity(NamedByKind):
    """Mean feature distance (1 - cosine, open_clip) to the other images of the same prompt."""

    kind: Literal["diversity"]
    weight: Annotated[float, NUMBER] = 1.0
    model: str = "shapes-clip"
    weights: str | None = None


@config
class Aesthetic(NamedByKind):
    """The LAION aesthetic predictor: `head` is its .pth file, `model` and `weights` the CLIP ViT-L-14 of OpenAI."""

    kind: Literal["aesthetic"]
    head: str
    weight: Annotated[float, NUMBER] = 1.0
    model: str = "ViT-L-14-quickgelu"
    weights: str | None = None


@config
class PickScore(NamedByKind):
    """`model` is the folder of PickScore_v1, `processor` that of its CLIP ViT-H-14 (null: the model's own)."""

    kind: Literal["pickscore"]
    model: str
    weight: Annotated[float, NUMBER] = 1.0
    processor: str | None = None


@config
class Hps(NamedByKind):
    """Human Preference Score: `weights` is HPS_v2.1_compressed.pt or HPS_v2_compressed.pt."""

    kind: Literal["hps_v2.1", "hps_v2.0"]
    weights: str
    weight: Annotated[float, NUMBER] = 1.0
    architecture: str = "ViT-H-14"


@config
class Remote:
    """A scorer behind HTTP (rewards/remote.py); `label` names the scores.

    An answer may take `timeout` seconds, and the server be away, as while it restarts, for `patience` seconds. `token`
    is the name of the environment variable that holds the token it wants (null: none), set where scorers run.
    """

    kind: Literal["remote"]
    url: Annotated[str, StringConstraints(pattern="^https?://")]
    weight: Annotated[float, NUMBER] = 1.0
    label: Label = "remote"
    timeout: Positive = 60.0
    patience: NonNegative = 300.0
    token: Annotated[str, StringConstraints(pattern="^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    format: Literal["json", "npz"] = "json"

    def __post_init__(self) -> None:
        if "@" in urlsplit(self.url).netloc:
            raise ValueError(
                "url has a user's name or password in it, and a config is kept with its run; give the name of an "
                "environment variable that holds a token in `token`"
            )

    @property
    def name(self) -> str:
        return self.label


@config
class CustomReward:
    """A class of the user's own, `kind` being `package.module:Class`, built with `options`.

    `label` names the scores (null: the class does).
    """

    kind: str
    weight: Annotated[float, NUMBER] = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)
    label: Label | None = None

    @property
    def name(self) -> str:
        return self.label or self.kind.rpartition(":")[2]


SHIPPED_REWARDS = {
    kind: cls
    for cls in (Jpeg, ClipScore, ShapesOracle, Grain, Diversity, Aesthetic, PickScore, Hps, Remote)
    for kind in get_args(get_type_hints(cls)["kind"])
}


def _reward_tag(value: Any) -> str | None:
    kind = value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)
    if kind is None:
        return None
    if isinstance(kind, str) and kind in SHIPPED_REWARDS:
        return SHIPPED_REWARDS[kind].__name__
    return "CustomReward" if ":" in str(kind) else str(kind)


Reward = Annotated[
    Annotated[Jpeg, Tag("Jpeg")]
    | Annotated[ClipScore, Tag("ClipScore")]
    | Annotated[ShapesOracle, Tag("ShapesOracle")]
    | Annotated[Grain, Tag("Grain")]
    | Annotated[Diversity, Tag("Diversity")]
    | Annotated[Aesthetic, Tag("Aesthetic")]
    | Annotated[PickScore, Tag("PickScore")]
    | Annotated[Hps, Tag("Hps")]
    | Annotated[Remote, Tag("Remote")]
    | Annotated[CustomReward, Tag("CustomReward")],
    Discriminator(_reward_tag),
]

# -- the loop ----------------------------------------------------------------------------------------------------------


@config
class Rollout:
    """A batch: `prompts` groups of `images` images.

    `max_staleness` is how many versions older than the newest weights those may be that sampled what is learned: 0 is
    strictly on-policy, 1 samples the next batch while this one is learned.
    """

    prompts: Count = 8
    images: Count = 16
    max_staleness: NonNegativeInt = 0
    reward_failures: NonNegativeInt = 3


@config
class Optimizer:
    """AdamW. A batch is split into `updates` optimizer steps, and gone through `epochs` times.

    `average` is the decay of a running mean of the weights (null: none), which is then what evaluations, `sample` and
    the exported adapter use; samplers go on with the weights themselves. At most `micro_batch` (image, step) pairs go
    through the network at once, of any groups and steps (null: as many images, at one step, as with the sampler).
    `auto` tries the sampler's number and its doubles in the first update, and goes on with the fastest that predicts
    the same bits; a run that is resumed from a checkpoint keeps it. Gradients are summed up in another order then, so
    that two runs, or one that is lost before its first checkpoint, are the same to the bit where the choice is: give
    the number for that.
    """

    learning_rate: Positive = 3e-4
    weight_decay: NonNegative = 1e-4
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    epsilon: Positive = 1e-8
    updates: Count = 1
    epochs: Count = 1
    average: Annotated[float, NUMBER, Gt(0), Lt(1)] | None = None
    max_gradient_norm: Positive = 1.0
    mixed_precision: Literal["no", "bf16"] = "no"
    micro_batch: Count | Literal["auto"] | None = None


@config
class ClipFeatures:
    """A CLIP model's image embeddings, of unit length; `model` and `weights` as for clip_score."""

    kind: Literal["clip"] = "clip"
    model: str = "shapes-clip"
    weights: str | None = None


@config
class InceptionFeatures:
    """Those of FID: Inception-v3, 2048 numbers; `weights` is torch-fidelity's weights-inception-2015-12-05 file."""

    kind: Literal["inception"] = "inception"
    weights: str


@config
class DinoFeatures:
    """Those of FD-DINO: DINOv2's class token; `model` is a folder in transformers' format (facebook/dinov2-large)."""

    kind: Literal["dinov2"] = "dinov2"
    model: str


@config
class ShapesReference:
    """`count` drawn pictures of the embedded world's held-out captions of that form."""

    kind: Literal["shapes"] = "shapes"
    count: Count = 512
    form: CaptionForm = "any"


@config
class ImagesReference:
    """A folder of pictures, or a .txt file with a picture's path a line; all of the size that the run makes."""

    kind: Literal["images"] = "images"
    path: str


@config
class BaseReference:
    """The pictures of the run's first evaluation, before training: the same prompts and noise as all later ones."""

    kind: Literal["base"] = "base"


@config
class Lpips:
    """The net of LPIPS; `weights` is torchvision's file of it (alexnet-owt-7be5be79.pth, vgg16-397923af.pth)."""

    net: Literal["alex", "vgg"] = "alex"
    weights: str


@config
class Quality:
    """What evaluations measure of the pictures themselves (quality/README.md), in the space of `features`.

    Against the `reference` (null: none): Fréchet distance, and precision, recall, density and coverage with the
    `neighbours` nearest. Of a prompt's pictures: Vendi score, mean pairwise distance, LPIPS. `cache` is a folder in
    which a reference's features are kept, for all runs that share it (null: each run computes them).
    """

    features: Annotated[ClipFeatures | InceptionFeatures | DinoFeatures, Discriminator("kind")]
    reference: Annotated[ShapesReference | ImagesReference | BaseReference, Discriminator("kind")] | None = None
    neighbours: Count = 5
    cache: str | None = None
    lpips: Lpips | None = None


@config
class EvaluationSampling:
    """How evaluations sample where that is not as in training; what is null is as in training.

    `deterministic` leaves the noise out (a flow's ODE, DDIM with eta 0). Each image starts from noise of its own, and
    steps with the network's own prediction.
    """

    steps: Count | None = None
    guidance_scale: NonNegative | None = None
    deterministic: bool = False


@config
class Evaluation:
    """On `count` prompts with `images` images each, at fixed seeds: before, every `every` steps, and at the end.

    `prompts` null holds a part of the run's own file out, by hash (prompts.split), or takes the embedded world's
    captions of the other split. Texts that are equal but for case and spaces count once. `held_out` false allows
    training prompts, as some papers' protocols do (with `prompts` null: those), and no page calls them held out then.
    `train_count` training prompts are evaluated besides: what is gained there and not on the others was learned by
    heart. `sampling` null samples as in training.
    """

    prompts: Prompts | None = None
    held_out: bool = True
    count: Count = 32
    train_count: NonNegativeInt = 0
    images: Count = 2
    every: Count = 10
    rewards: tuple[Reward, ...] = ()
    quality: Quality | None = None
    sampling: EvaluationSampling | None = None

    def __post_init__(self) -> None:
        if self.prompts is None and not self.held_out and self.train_count:
            raise ValueError(
                f"evaluation.train_count is {self.train_count} with evaluation.held_out=false and no "
                "evaluation.prompts, which are training prompts already; leave one of the two out"
            )
        quality = self.quality
        if quality is None:
            return
        if self.images < 2 and (quality.reference is None or quality.lpips is not None):
            raise ValueError(
                f"evaluation.images is {self.images}, and diversity compares a prompt's images; use at least 2, or "
                "give evaluation.quality a reference and no lpips"
            )
        if quality.reference is not None and self.count * self.images <= quality.neighbours:
            raise ValueError(
                f"evaluation.quality.neighbours is {quality.neighbours}, of {self.count} x {self.images} images; "
                "evaluate more images, or use fewer neighbours"
            )
        reference = quality.reference
        if isinstance(reference, ShapesReference) and reference.count <= quality.neighbours:
            raise ValueError(
                f"evaluation.quality.reference.count is {reference.count}; "
                f"expected more than the {quality.neighbours} neighbours"
            )


@config
class Monitors:
    """What to do (`action`) when evaluations show that the run collapses or hacks its reward (monitors.py).

    An alarm is raised when a condition holds at `patience` evaluations in a row: their `diversity`, or the
    `deviation` of rewards within a training group, below that share of what it was at first; the trained reward, or
    one that is only watched while the trained one rises, down by `fall` standard deviations of its scores and clearly.
    `warn` goes on; `stop` ends the run with a checkpoint; `roll_back` ends it at the newest checkpoint from before.
    """

    action: Literal["warn", "stop", "roll_back"] = "warn"
    patience: Count = 2
    diversity: Fraction = 0.5
    deviation: Fraction = 0.1
    fall: Positive = 0.5


@config
class Checkpoints:
    """Every `every` steps and at the end; the newest `keep` stay."""

    every: Count = 10
    keep: Count = 2


@config
class Role:
    """Worker processes of one role: how many at first, what Ray reserves for each, and the threads each computes with.

    With `max` the run itself has between `min` and `max` of them, as many as keep nobody waiting. `resources` are
    custom resources of Ray's nodes, `accelerator` the type of GPU (H100, A100-80G, ...).
    """

    workers: Count = 1
    min: Count = 1
    max: Count | None = None
    cpus: NonNegative = 1.0
    gpus: NonNegative = 0.0
    resources: Mapping[str, float] = field(default_factory=dict)
    accelerator: str | None = None
    threads: Count = 1

    def __post_init__(self) -> None:
        if self.max is None and self.min != 1:
            raise ValueError(f"min is {self.min} without max, and only a pool with both changes; give max too")
        if self.max is not None and not self.min <= self.workers <= self.max:
            raise ValueError(f"workers is {self.workers}; expected {self.min} (min) to {self.max} (max)")


@config
class LearnerRole:
    """The learner's `ranks`, processes in lock-step: what Ray reserves for each, and the threads it computes with.

    Each learns its share of every minibatch's (image, step) pairs, with a copy of the network (`ddp`) or a part of
    every parameter (`fsdp2`), which takes less memory and more time. No call between them may take longer than
    `timeout` seconds.
    """

    ranks: Count = 1
    strategy: Literal["ddp", "fsdp2"] = "ddp"
    timeout: Positive = 300.0
    cpus: NonNegative = 1.0
    gpus: NonNegative = 0.0
    resources: Mapping[str, float] = field(default_factory=dict)
    accelerator: str | None = None
    threads: Count = 1


@config
class Workers:
    """Who does the work.

    `start_timeout` is how many seconds the learner and the first sampler and scorer may take to be ready,
    `task_timeout` how long nothing may finish before the run is stopped. A sampler or scorer that gave no sign of life
    for `silence_timeout` seconds is replaced. `sync` is how new weights reach the samplers: each pulls a version when a
    task names it, or the learner sends them to all that are idle (broadcast: for full fine-tuning on GPUs), and those
    that were not, or did not get them in 60 seconds, pull.
    """

    samplers: Role = field(default_factory=Role)
    scorers: Role = field(default_factory=Role)
    learner: LearnerRole = field(default_factory=LearnerRole)
    start_timeout: Positive = 300.0
    silence_timeout: Positive = 60.0
    task_timeout: Positive = 3600.0
    sync: Literal["pull", "broadcast"] = "pull"

    @property
    def elastic(self) -> bool:
        """Whether the run may have other numbers of workers than it began with."""
        return self.samplers.max is not None or self.scorers.max is not None


TRACKERS = ("tensorboard", "wandb", "mlflow", "comet_ml", "aim", "clearml", "dvclive", "swanlab", "trackio")


@config
class Run:
    """One run, complete.

    Several rewards `combine` as the weighted sum of their scores, or of their advantages, each reward normalised first.
    """

    name: Annotated[str, "the run's folder is runs/<name>"]
    seed: NonNegativeInt = 0
    steps: Count
    model: Model
    prompts: Prompts
    sampling: Sampling
    rewards: tuple[Reward, ...]
    combine: Literal["scores", "advantages"] = "scores"
    credit: Credit
    advantage: Advantage
    objective: Objective
    rollout: Rollout = field(default_factory=Rollout)
    optimizer: Optimizer = field(default_factory=Optimizer)
    evaluation: Evaluation = field(default_factory=Evaluation)
    monitors: Monitors = field(default_factory=Monitors)
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    workers: Workers = field(default_factory=Workers)
    trackers: tuple[Literal[TRACKERS], ...] = ()  # type: ignore[valid-type]

    def __post_init__(self) -> None:
        if not self.name or Path(self.name).name != self.name or self.name.startswith("."):
            raise ValueError(f"name is {self.name!r}; expected one folder name, without slashes or a leading dot")
        if not self.rewards:
            raise ValueError("rewards is empty; give at least one reward to train on")
        if not any(reward.weight for reward in self.rewards):
            raise ValueError("rewards all have the weight 0, and nothing is trained on them; give one another weight")
        for reward in (*self.rewards, *self.evaluation.rewards):
            if reward.name in OUR_NAMES or (reward.name != reward.kind and reward.name in SHIPPED_REWARDS):
                raise ValueError(
                    f"the reward {reward.kind} is named {reward.name!r}, as something else is ({', '.join(OUR_NAMES)}, "
                    "and the shipped rewards have their names); give it another `label`"
                )
        for where, rewards in (("rewards", self.rewards), ("evaluation.rewards", self.evaluation.rewards)):
            names = [reward.name for reward in rewards]
            if len(set(names)) != len(names):
                raise ValueError(
                    f"{where} names the same reward twice: {names}; give each one once, and where two classes of your "
                    "own have one name, or one class stands there twice, give each a `label`"
                )
        trained = {reward.name: dataclasses.replace(reward, weight=1.0) for reward in self.rewards}
        for reward in self.evaluation.rewards:
            other = dataclasses.replace(reward, weight=1.0)
            if trained.get(reward.name, other) != other:
                raise ValueError(
                    f"evaluation.rewards has another {reward.name} than rewards, and one name is one column of scores; "
                    "give both the same settings, or leave it out of evaluation.rewards (it is evaluated anyway), or "
                    "give one of your own a `label`"
                )
        if isinstance(self.advantage, GroupAdvantage) and self.rollout.images < 2:
            raise ValueError(
                f"rollout.images is {self.rollout.images}: a group of one has no relative advantage; "
                "use at least 2 images a prompt, or advantage.kind=batch"
            )
        for path, images, rewards in (
            ("rollout.images", self.rollout.images, self.rewards),
            ("evaluation.images", self.evaluation.images, (*self.rewards, *self.evaluation.rewards)),
        ):
            if images < 2 and any(isinstance(reward, Diversity) for reward in rewards):
                raise ValueError(f"{path} is {images}, and diversity compares a prompt's images; use at least 2")
        if self.optimizer.updates > self.rollout.prompts:
            raise ValueError(
                f"optimizer.updates is {self.optimizer.updates}, for {self.rollout.prompts} groups a batch; "
                "set it to at most rollout.prompts"
            )
        if self.model.dtype == "float16" and self.optimizer.mixed_precision == "bf16":
            raise ValueError(
                "optimizer.mixed_precision is bf16 with model.dtype=float16, and torch does not mix these half types; "
                "set model.dtype to float32 or bfloat16"
            )
        if self.optimizer.micro_batch == "auto" and self.workers.learner.strategy == "fsdp2":
            raise ValueError(
                "optimizer.micro_batch is auto with workers.learner.strategy=fsdp2, whose ranks cannot try it apart; "
                "give a number, or leave it null"
            )
        if self.sampling.shift is not None and not self.model.flow:
            raise ValueError(f"sampling.shift is for flow models; leave it out with model.kind={self.model.kind}")
        kinds = FLOW_KINDS if self.model.flow else DIFFUSION_KINDS
        for path, kind in (("sampling.process.kind", self.sampling.process.kind), ("credit.kind", self.credit.kind)):
            if kind not in kinds[path]:
                raise ValueError(
                    f"{path} is {kind!r}, which model.kind={self.model.kind} does not have; "
                    f"expected one of {list(kinds[path])}"
                )
        if self.objective.log_ratio != "decomposed" and self.credit.kind != "native":
            raise ValueError(
                f"objective.log_ratio is {self.objective.log_ratio} with credit.kind={self.credit.kind}, and that "
                "log-ratio has its sampler's own weights; set credit.kind=native, or objective.log_ratio=decomposed"
            )
        if self.objective.log_ratio == "flow_cps" and not isinstance(self.sampling.process, CoefficientsPreserving):
            raise ValueError(
                f"objective.log_ratio is flow_cps with sampling.process.kind={self.sampling.process.kind}; it is the "
                "published loss of Flow-CPS: set sampling.process.kind=coefficients_preserving, or "
                "objective.log_ratio=decomposed"
            )
        own = self.evaluation.sampling
        if own is not None and not own.deterministic and self.credit.kind in ("released", "variance", "interpolate"):
            raise ValueError(
                f"evaluation.sampling has the sampler's noise with credit.kind={self.credit.kind}, which is a sampler "
                "of its own at sampling.steps; set evaluation.sampling.deterministic=true, or leave "
                "evaluation.sampling out to evaluate as in training"
            )
        if isinstance(self.model.train, Full):
            for asks, what in (
                (isinstance(self.credit, Interpolate), "credit.kind=interpolate"),
                (self.objective.kl > 0, f"objective.kl={self.objective.kl:g}"),
            ):
                if asks:
                    raise ValueError(f"{what} needs the reference under an adapter; set model.train.kind=lora")

    def of_evaluation(self, noun: str) -> str:
        """The noun, of what evaluations are on: "held-out reward", or "reward of training prompts"."""
        if self.evaluation.held_out:
            return f"held-out {noun}"
        which = "training prompts" if self.evaluation.prompts in (None, self.prompts) else "prompts not held out"
        return which if noun == "prompts" else f"{noun} of {which}"

    @property
    def evaluated(self) -> Sampling:
        """How evaluations sample: as training does, but for what evaluation.sampling says."""
        own = self.evaluation.sampling
        if own is None:
            return self.sampling
        guidance = self.sampling.guidance_scale if own.guidance_scale is None else own.guidance_scale
        return dataclasses.replace(
            self.sampling,
            steps=own.steps or self.sampling.steps,
            guidance_scale=guidance,
            trained_steps=None,
            subset=None,
            shared_noise=False,
            detach_unconditional=False,
        )


DIFFUSION_KINDS = {
    "sampling.process.kind": ("ddim",),
    "credit.kind": ("native", "reweight", "released", "variance", "interpolate", "tilted"),
}
FLOW_KINDS = {
    "sampling.process.kind": ("constant_noise", "ratio_noise", "coefficients_preserving", "proportionate_noise"),
    "credit.kind": ("native", "reweight", "proportionate", "tilted"),
}
