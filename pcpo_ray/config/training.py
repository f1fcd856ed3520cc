"""Training: the batch, the optimizer, and the checkpoints."""

from dataclasses import field
from typing import Annotated, Any, Literal, get_args

from annotated_types import Gt, Lt
from pydantic import WithJsonSchema

from pcpo_ray.config.base import NUMBER, Count, Fraction, NonNegative, NonNegativeInt, Options, Positive, Unit, config
from pcpo_ray.config.meant import as_own, kind_meant, own_meant


@config
class Rollout:
    """A batch: `prompts` groups of `images` images."""

    prompts: Count = 8
    """Groups in a batch; each has one prompt."""
    images: Count = 16
    """Images of one prompt: the size of a group."""
    max_staleness: Annotated[NonNegativeInt, Unit("versions")] = 0
    """The most versions by which the weights that sampled a batch may be behind the newest.

    0 is strictly on-policy; 1 samples the next batch while this one is trained on.
    """
    reward_failures: NonNegativeInt = 3
    """Groups in a row that may miss scores; one more ends the run."""


ShippedOptimizer = Literal["adamw", "adamw8bit"]
Schedule = Literal[
    "constant",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "cosine_with_min_lr",
    "polynomial",
    "inverse_sqrt",
    "warmup_stable_decay",
]
"""Schedules of transformers' `get_scheduler` that depend on the step alone."""

ENDLESS: tuple[Schedule, ...] = ("constant", "inverse_sqrt")
"""Schedules that do not depend on how many steps the run has."""

ADAMW = ("weight_decay", "beta1", "beta2", "epsilon")
"""Settings of both kinds of AdamW; an optimizer of the user's own takes its settings from `options`."""

OptimizerKind = Annotated[
    str, WithJsonSchema({"anyOf": [{"enum": list(get_args(ShippedOptimizer))}, {"type": "string", "pattern": ":"}]})
]


@config
class Optimizer:
    """The optimizer and its steps: each batch is split into mini-batches, and one optimizer step is made for each."""

    kind: OptimizerKind = "adamw"
    """AdamW, AdamW with 8-bit moments (bitsandbytes), or a torch.optim.Optimizer of yours as `package.module:Class`."""
    options: Options = field(default_factory=dict)
    """Keyword arguments of an optimizer of your own, beside the learning rate."""
    learning_rate: Positive = 3e-4
    """The learning rate, or the highest one where it follows a schedule."""
    schedule: Schedule = "constant"
    """The course of the learning rate over the run's steps, by the names of transformers' `get_scheduler`."""
    schedule_options: Options = field(default_factory=dict)
    """Further arguments of the schedule, such as `num_cycles` of cosine_with_restarts."""
    warmup: Annotated[NonNegativeInt, Unit("steps")] = 0
    """Training steps over which the learning rate first rises to its full value."""
    weight_decay: NonNegative = 1e-4
    """AdamW's weight decay."""
    decay_norms_and_biases: bool = True
    """False leaves norms and biases (parameters of fewer than two dimensions) out of weight decay."""
    beta1: Fraction = 0.9
    """AdamW's decay of the gradients' mean."""
    beta2: Fraction = 0.999
    """AdamW's decay of the squared gradients' mean."""
    epsilon: Positive = 1e-8
    """The number that AdamW adds to the denominator."""
    minibatches: Count = 1
    """Optimizer steps that one pass over a batch makes; each is on a part of its groups."""
    epochs: Count = 1
    """Passes over a batch: minibatches x epochs optimizer steps are made of it."""
    average: Annotated[float, Gt(0), Lt(1), NUMBER] | None = None
    """The decay of an EMA of the weights; null: none.

    Evaluations, `sample` and the exported adapter then use the EMA; samplers go on with the weights themselves.
    """
    max_gradient_norm: Positive = 1.0
    """The norm to which a larger gradient is scaled down."""
    mixed_precision: Literal["no", "bf16"] = "no"
    """`bf16` computes the network's layers in bfloat16 (autocast), as training and sampling both do then."""
    compile: bool = False
    """True compiles the network's repeated blocks where it trains (torch.compile).

    It needs `objective.old_predictions: recomputed`, as compiled code computes other bits, and a C++ compiler.
    """
    micro_batch: Count | Literal["auto"] | None = None
    """The most (image, timestep) pairs that go through the network at once; null: as many images as in the sampler.

    The pairs are of any groups and timesteps, where null takes one timestep at a time. `auto` tries the sampler's
    number and its doubles in the first update, and keeps the fastest that predicts the same bits; a run that resumes
    from a checkpoint keeps that choice. Gradients are then summed in another order. Two runs, or a run that is lost
    before its first checkpoint, are therefore equal to the bit only if the choice is equal; give the number to make
    sure of it. With a number, the first log-ratio may be a little above 0 (at most 1e-6, else the run ends).
    """

    @property
    def own(self) -> bool:
        """True for an optimizer of the user's own."""
        return ":" in self.kind

    @property
    def scheduled(self) -> bool:
        """True if the learning rate changes over the run."""
        return self.schedule != "constant" or self.warmup > 0

    def __post_init__(self) -> None:
        shipped = get_args(ShippedOptimizer)
        if not self.own and self.kind not in shipped:
            guess = own_meant(self.kind) or kind_meant("optimizer", self.kind, shipped)
            raise ValueError(
                f"kind is {self.kind!r}{guess}; expected one of {[*shipped, 'package.module:Class']}"
                f"{'' if guess else as_own(self.kind)}"
            )
        if not self.own and self.options:
            raise ValueError(
                f"options is {dict(self.options)} with kind {self.kind}, which has keys of its own "
                f"({', '.join(ADAMW)}); give options with a class of your own only"
            )
        changed = [key for key in ADAMW if self.own and getattr(self, key) != _default(key)]
        if changed:
            raise ValueError(
                f"{' and '.join(changed)} {'is' if len(changed) == 1 else 'are'} AdamW's, and kind is {self.kind}; "
                "give an optimizer of your own its settings in `options`"
            )
        if self.schedule == "constant" and self.schedule_options:
            raise ValueError(
                f"schedule_options is {dict(self.schedule_options)} with schedule constant, which has none; "
                "name a schedule, or leave them out"
            )


def _default(key: str) -> Any:
    return Optimizer.__dataclass_fields__[key].default  # type: ignore[attr-defined]  # @config has made it


@config
class Checkpoints:
    """A checkpoint every `every` steps and at the end; the newest `keep` stay."""

    every: Annotated[Count, Unit("steps")] = 10
    """Steps between two checkpoints."""
    keep: Count = 2
    """The number of newest checkpoints that stay."""
