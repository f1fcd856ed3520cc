"""Every config class, on one page; `load` reads a YAML file, `dump` writes the resolved one.

A config is a value: frozen, complete, comparable. Unknown keys, wrong types and values out of range are errors that
name the full path, the value and what was expected; overrides are `a.b.c=value`, read as YAML.
"""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform, get_args, get_origin, get_type_hints

import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BeforeValidator, Discriminator, Tag, TypeAdapter, ValidationError

from pcpo_ray.errors import ConfigError


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
    """Low-rank adapters on the layers whose names end in one of `targets`."""

    kind: Literal["lora"] = "lora"
    rank: Count = 16
    alpha: Positive = 16.0
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")


@config
class Full:
    """Every parameter of the denoiser is trained."""

    kind: Literal["full"] = "full"


@config
class Model:
    """A folder in diffusers' format, or the name of a model that the package ships (shapes-sd, shapes-flux)."""

    kind: Literal["stable_diffusion", "flux"]
    path: str
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    train: Annotated[Lora | Full, Discriminator("kind")] = field(default_factory=Lora)


# -- prompts -----------------------------------------------------------------------------------------------------------


@config
class ShapesPrompts:
    """The captions of the embedded world."""

    kind: Literal["shapes"] = "shapes"
    split: Literal["train", "held_out"] = "train"


@config
class PromptFile:
    """A text file (a prompt a line), or CSV, JSONL or Parquet with a column of prompts."""

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
class Sampling:
    """How an image is made: `steps` denoising steps, of which the first `trained_steps` (null: all that draw noise) are
    trained on. `height` and `width` in pixels (null: the model's own), `batch` images a forward pass (null: a whole
    group); the learner uses the same `batch`, so that both compute the same bits."""

    steps: Count = 20
    guidance_scale: NonNegative = 1.0
    process: Annotated[Ddim | ConstantNoise | RatioNoise, Discriminator("kind")]
    trained_steps: Count | None = None
    height: Count | None = None
    width: Count | None = None
    batch: Count | None = None

    def __post_init__(self) -> None:
        if self.trained_steps is not None and self.trained_steps > self.steps:
            raise ValueError(
                f"sampling.trained_steps is {self.trained_steps}, of {self.steps} steps; use at most those"
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


Credit = Annotated[Native | Reweight | Released | Variance | Interpolate | Proportionate, Discriminator("kind")]


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


@config
class BatchAdvantage:
    """(score - the batch's mean) / the batch's deviation."""

    kind: Literal["batch"] = "batch"
    epsilon: NonNegative = 1e-6
    clip: Positive = 5.0


Advantage = Annotated[GroupAdvantage | HistoryAdvantage | BatchAdvantage, Discriminator("kind")]


@config
class ClippedRatio:
    """PPO's clipped ratio."""

    kind: Literal["clipped_ratio"] = "clipped_ratio"
    clip_range: Positive = 1e-4


@config
class LogHinge:
    """PCPO's hinge on the log-ratio."""

    kind: Literal["log_hinge"] = "log_hinge"
    clip_range: Positive = 1e-4


Objective = Annotated[ClippedRatio | LogHinge, Discriminator("kind")]

# -- rewards -----------------------------------------------------------------------------------------------------------


@config
class Jpeg:
    """Size of the JPEG file in kB, negative for compressibility."""

    kind: Literal["jpeg_compressibility", "jpeg_incompressibility"]
    weight: Annotated[float, NUMBER] = 1.0
    quality: Annotated[int, NUMBER, Ge(1), Le(100)] = 95

    @property
    def name(self) -> str:
        return self.kind


@config
class ClipScore:
    """Cosine between image and prompt in an open_clip model: a shipped name, a folder, or name and weights file."""

    kind: Literal["clip_score"]
    weight: Annotated[float, NUMBER] = 1.0
    model: str = "shapes-clip"
    weights: str | None = None

    @property
    def name(self) -> str:
        return self.kind


@config
class ShapesOracle:
    """The share of the caption's facts that the picture shows, or 1 only where all hold."""

    kind: Literal["shapes_oracle", "shapes_oracle_all"]
    weight: Annotated[float, NUMBER] = 1.0

    @property
    def name(self) -> str:
        return self.kind


@config
class Diversity:
    """Mean feature distance (1 - cosine, open_clip) to the other images of the same prompt."""

    kind: Literal["diversity"]
    weight: Annotated[float, NUMBER] = 1.0
    model: str = "shapes-clip"
    weights: str | None = None

    @property
    def name(self) -> str:
        return self.kind


@config
class CustomReward:
    """A class of the user's own, `kind` being `package.module:Class`, built with `options`."""

    kind: str
    weight: Annotated[float, NUMBER] = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.kind.rpartition(":")[2]


SHIPPED_REWARDS = {
    kind: cls for cls in (Jpeg, ClipScore, ShapesOracle, Diversity) for kind in get_args(get_type_hints(cls)["kind"])
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
    | Annotated[Diversity, Tag("Diversity")]
    | Annotated[CustomReward, Tag("CustomReward")],
    Discriminator(_reward_tag),
]

# -- the loop ----------------------------------------------------------------------------------------------------------


@config
class Rollout:
    """A batch: `prompts` groups of `images` images; `batches_ahead` 0 is strictly on-policy, 1 samples the next batch
    while this one is learned."""

    prompts: Count = 8
    images: Count = 16
    batches_ahead: Literal[0, 1] = 0
    reward_failures: NonNegativeInt = 3


@config
class Optimizer:
    """AdamW. A batch is split into `updates` optimizer steps."""

    learning_rate: Positive = 3e-4
    weight_decay: NonNegative = 1e-4
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    epsilon: Positive = 1e-8
    updates: Count = 1
    max_gradient_norm: Positive = 1.0
    mixed_precision: Literal["no", "bf16"] = "no"


@config
class Evaluation:
    """On `count` prompts with `images` images each, at fixed seeds: before, every `every` steps, and at the end."""

    prompts: Prompts = field(default_factory=lambda: ShapesPrompts(split="held_out"))
    count: Count = 32
    images: Count = 2
    every: Count = 10
    rewards: tuple[Reward, ...] = ()


@config
class Checkpoints:
    """Every `every` steps and at the end; the newest `keep` stay."""

    every: Count = 10
    keep: Count = 2


@config
class Role:
    """Worker processes of one role: how many, what Ray reserves for each, and the threads each computes with."""

    workers: Count = 1
    cpus: NonNegative = 1.0
    gpus: NonNegative = 0.0
    threads: Count = 1


@config
class LearnerRole:
    """The learner's process: what Ray reserves for it, and the threads it computes with."""

    cpus: NonNegative = 1.0
    gpus: NonNegative = 0.0
    threads: Count = 1


@config
class Workers:
    """Who does the work. `start_timeout` is how many seconds all workers may take to be ready, `task_timeout` how long
    one task or update may take before the run is stopped."""

    samplers: Role = field(default_factory=Role)
    scorers: Role = field(default_factory=Role)
    learner: LearnerRole = field(default_factory=LearnerRole)
    start_timeout: Positive = 300.0
    task_timeout: Positive = 3600.0


TRACKERS = ("tensorboard", "wandb", "mlflow", "comet_ml", "aim", "clearml", "dvclive", "swanlab", "trackio")


@config
class Run:
    """One run, complete."""

    name: Annotated[str, "the run's folder is runs/<name>"]
    seed: NonNegativeInt = 0
    steps: Count
    model: Model
    prompts: Prompts
    sampling: Sampling
    rewards: tuple[Reward, ...]
    credit: Credit
    advantage: Advantage
    objective: Objective
    rollout: Rollout = field(default_factory=Rollout)
    optimizer: Optimizer = field(default_factory=Optimizer)
    evaluation: Evaluation = field(default_factory=Evaluation)
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    workers: Workers = field(default_factory=Workers)
    trackers: tuple[Literal[TRACKERS], ...] = ()  # type: ignore[valid-type]

    def __post_init__(self) -> None:
        if not self.name or Path(self.name).name != self.name or self.name.startswith("."):
            raise ValueError(f"name is {self.name!r}; expected one folder name, without slashes or a leading dot")
        if not self.rewards:
            raise ValueError("rewards is empty; give at least one reward to train on")
        for where, rewards in (("rewards", self.rewards), ("evaluation.rewards", self.evaluation.rewards)):
            names = [reward.name for reward in rewards]
            if len(set(names)) != len(names):
                raise ValueError(f"{where} names the same reward twice: {names}; give each one once")
        trained = {reward.name: dataclasses.replace(reward, weight=1.0) for reward in self.rewards}
        for reward in self.evaluation.rewards:
            other = dataclasses.replace(reward, weight=1.0)
            if trained.get(reward.name, other) != other:
                raise ValueError(
                    f"evaluation.rewards has another {reward.name} than rewards, and one name is one column of scores; "
                    "give both the same settings, or leave it out of evaluation.rewards (it is evaluated anyway)"
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
        names = [reward.name for reward in (*self.rewards, *self.evaluation.rewards)]
        if TOTAL in names:
            raise ValueError(f"a reward is named {TOTAL!r}, as the weighted sum of all is; give its class another name")
        if self.optimizer.updates > self.rollout.prompts:
            raise ValueError(
                f"optimizer.updates is {self.optimizer.updates}, for {self.rollout.prompts} groups a batch; "
                "set it to at most rollout.prompts"
            )
        flow = self.model.kind == "flux"
        kinds = FLOW_KINDS if flow else DIFFUSION_KINDS
        for path, kind in (("sampling.process.kind", self.sampling.process.kind), ("credit.kind", self.credit.kind)):
            if kind not in kinds[path]:
                raise ValueError(
                    f"{path} is {kind!r}, which model.kind={self.model.kind} does not have; "
                    f"expected one of {list(kinds[path])}"
                )
        if isinstance(self.credit, Interpolate) and isinstance(self.model.train, Full):
            raise ValueError("credit.kind=interpolate needs the reference under an adapter; set model.train.kind=lora")


DIFFUSION_KINDS = {
    "sampling.process.kind": ("ddim",),
    "credit.kind": ("native", "reweight", "released", "variance", "interpolate"),
}
FLOW_KINDS = {
    "sampling.process.kind": ("constant_noise", "ratio_noise"),
    "credit.kind": ("native", "proportionate"),
}

# -- reading and writing -----------------------------------------------------------------------------------------------


def nearest(word: str, known: Any) -> str:
    """` (did you mean 'x'?)` for the known name that is closest to `word`, else nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def load(path: str | Path, overrides: Sequence[str] = ()) -> Run:
    """The config in a YAML file, with overrides `a.b.c=value`.

    Raises ConfigError naming the file, the full path of the key, what was got and what was expected.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"no config file at {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as UTF-8 text: {error}") from None
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds {type(data).__name__}; expected keys such as name, model, rewards")
    for override in overrides:
        _override(data, override)
    return parse(data, source=str(path))


def parse(data: Mapping[str, Any], *, source: str = "config") -> Run:
    """The config that plain data describes; raises ConfigError as `load` does."""
    try:
        return TypeAdapter(Run).validate_python(data)
    except ValidationError as error:
        lines = [_explain(detail) for detail in error.errors(include_url=False)]
        raise ConfigError("\n".join([f"{source}: {len(lines)} wrong", *(f"  {line}" for line in lines)])) from None


def dump(value: Any) -> str:
    """The resolved config as YAML; `load` gives the same value back."""
    data = TypeAdapter(type(value)).dump_python(value, mode="json")
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120)


def _override(data: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise ConfigError(f"override {override!r}: expected a.b.c=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not YAML: {error}") from None
    *parents, last = path.split(".")
    node: Any = data
    for depth, key in enumerate(parents):
        if isinstance(node, dict):
            node = node.setdefault(key, {})
        elif isinstance(node, list) and key.isdigit() and int(key) < len(node):
            node = node[int(key)]
        else:
            raise ConfigError(f"override {override!r}: {'.'.join(parents[:depth])} has no {key!r}")
    if isinstance(node, list) and last.isdigit() and int(last) < len(node):
        node[int(last)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise ConfigError(f"override {override!r}: {'.'.join(parents)} is {node!r}, which has no keys")


def _explain(detail: Any) -> str:
    """One line for one of pydantic's findings: full path, what was got, what was expected."""
    keys, cls, annotation = _walk(detail["loc"])
    path = ".".join(keys) or "config"
    if detail["type"] == "unexpected_keyword_argument":
        known = [f.name for f in dataclasses.fields(cls)] if cls is not None else []
        return f"{path}: unknown key{nearest(keys[-1], known)}; expected one of {known}"
    if detail["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{path}: missing; it has no default"
    if detail["type"].startswith("union_tag"):
        tags = [tag for member in _members(annotation) for tag in _kinds(member)]
        tags += ["package.module:Class"] if CustomReward in _members(annotation) else []
        got = detail["input"].get("kind") if isinstance(detail["input"], Mapping) else detail["input"]
        return f"{path}.kind: got {got!r}{nearest(str(got), tags)}; expected one of {tags}"
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "value_error":
        return f"{path}: {message}"
    return f"{path}: got {detail['input']!r}; {message[0].lower()}{message[1:]}"


def _walk(location: Sequence[Any]) -> tuple[list[str], type | None, Any]:
    """The location without pydantic's union tags, the config class that owns its last key, and that key's type."""
    keys: list[str] = []
    annotation: Any = Run
    owner: type | None = None
    for part in location:
        options = _members(annotation)
        tagged = [c for c in options if part in (c.__name__, *_kinds(c))]
        if tagged and len(options) > 1:
            annotation = tagged[0]
            continue
        keys.append(str(part))
        owner = options[0] if len(options) == 1 else None
        if isinstance(part, int):
            annotation = (get_args(annotation) or (Any,))[0]
        elif owner is not None:
            annotation = get_type_hints(owner, include_extras=True).get(part, Any)
    return keys, owner, annotation


def _members(annotation: Any) -> list[type]:
    """The config classes that an annotation allows."""
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return [annotation]
    if get_origin(annotation) in (None, tuple):
        return []
    return [member for argument in get_args(annotation) for member in _members(argument)]


def _kinds(cls: type) -> tuple[Any, ...]:
    return get_args(get_type_hints(cls).get("kind"))
