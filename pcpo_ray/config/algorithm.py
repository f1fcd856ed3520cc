"""The method: the credit of each step, and the advantages."""

from dataclasses import field
from typing import Annotated, ClassVar, Literal

from annotated_types import Gt, Lt

from pcpo_ray.config.base import (
    FAMILIES,
    NUMBER,
    ByKind,
    Count,
    Family,
    NonNegative,
    Options,
    OwnKind,
    Positive,
    config,
)

# -- credit ------------------------------------------------------------------------------------------------------------
# `families` names the model families that a kind is defined for. `changes_sampler` tells whether it also samples
# otherwise than the process alone, at sampling.steps only.


@config
class Native:
    """Each step keeps the weight that its own sampler gives it."""

    families: ClassVar[tuple[Family, ...]] = ("diffusion", "flow")
    changes_sampler: ClassVar[bool] = False

    kind: Literal["native"] = "native"


@config
class Reweight:
    """The native sampler, with the mean of the native weights at every trained step."""

    families: ClassVar[tuple[Family, ...]] = ("diffusion", "flow")
    changes_sampler: ClassVar[bool] = False

    kind: Literal["reweight"] = "reweight"


@config
class Released:
    """The plus root at `w_star`, the sampler of the authors' released code."""

    families: ClassVar[tuple[Family, ...]] = ("diffusion",)
    changes_sampler: ClassVar[bool] = True

    kind: Literal["released"] = "released"
    w_star: Positive = 4.5
    """The weight w* at which the sampler's noise is solved for."""


@config
class Variance:
    """The minus root at `w_star`, with weights that are literally constant."""

    families: ClassVar[tuple[Family, ...]] = ("diffusion",)
    changes_sampler: ClassVar[bool] = True

    kind: Literal["variance"] = "variance"
    w_star: Positive | None = None
    """The weight of every trained step; null: the smallest that all of them can have."""


@config
class Interpolate:
    """Prediction = reference + lambda (policy - reference), with every weight `w_star`."""

    families: ClassVar[tuple[Family, ...]] = ("diffusion",)
    changes_sampler: ClassVar[bool] = True

    kind: Literal["interpolate"] = "interpolate"
    w_star: Positive | None = None
    """The weight of every trained step; null: the mean of the native weights."""


@config
class Proportionate:
    """Each step's weight is proportional to the time it covers (arXiv 2509.25774)."""

    families: ClassVar[tuple[Family, ...]] = ("flow",)
    changes_sampler: ClassVar[bool] = False

    kind: Literal["proportionate"] = "proportionate"


@config
class Tilted:
    """Reweight (diffusion) or proportionate (flow) weights, times a factor that falls linearly along the steps.

    The factor is 1 + `slope` at the first trained step and 1 - `slope` at the last. Ours: not in a paper.
    """

    families: ClassVar[tuple[Family, ...]] = ("diffusion", "flow")
    changes_sampler: ClassVar[bool] = False

    kind: Literal["tilted"] = "tilted"
    slope: Annotated[float, Gt(-1), Lt(1), NUMBER]
    """Above 0 it favours early, noisy steps; below 0, late ones."""


@config
class GrpoGuard:
    """GRPO-Guard (arXiv 2510.22319): the linear term of the log-ratio times the noise's std, and the loss over dt.

    Its log-ratios are smaller by that std, so its clip range has to be smaller too.
    """

    families: ClassVar[tuple[Family, ...]] = ("flow",)
    changes_sampler: ClassVar[bool] = False

    kind: Literal["grpo_guard"] = "grpo_guard"


@config
class FlashGrpo:
    """Flash-GRPO (arXiv 2605.15980): native weights inside the clip, and the loss divided by them outside.

    The paper trains one step per prompt: sampling.subset.kind=window with size 1 and order per_prompt.
    """

    families: ClassVar[tuple[Family, ...]] = ("diffusion", "flow")
    changes_sampler: ClassVar[bool] = False

    kind: Literal["flash_grpo"] = "flash_grpo"


@config
class FairClip:
    """The log-ratio times the noise's variance inside the clip, and the loss divided by it (PCPO's author's code).

    What the clip range limits is then the squared distance of means in the latents' own unit.
    """

    families: ClassVar[tuple[Family, ...]] = ("diffusion", "flow")
    changes_sampler: ClassVar[bool] = False

    kind: Literal["fair_clip"] = "fair_clip"


@config
class FairClip2:
    """The clip of `fair_clip` with the gradient's weights of `grpo_guard` (PCPO's author's code)."""

    families: ClassVar[tuple[Family, ...]] = ("flow",)
    changes_sampler: ClassVar[bool] = False

    kind: Literal["fair_clip2"] = "fair_clip2"


@config
class Entropy:
    """Each step's weight follows what its noise leaves undecided of the image, measured on each group.

    It is the exponential of that entropy: the std of the change of the predicted image. Ours: not in a paper.
    """

    families: ClassVar[tuple[Family, ...]] = ("diffusion", "flow")
    changes_sampler: ClassVar[bool] = False

    kind: Literal["entropy"] = "entropy"


@config
class Attention:
    """Each step's weight follows how far it moves the image's attention to the prompt, measured on each image.

    Sampling computes these maps beside the network's own attention. Ours: not in a paper.
    """

    families: ClassVar[tuple[Family, ...]] = ("diffusion", "flow")
    changes_sampler: ClassVar[bool] = False

    kind: Literal["attention"] = "attention"


MEASURED = (Entropy, Attention)
"""The kinds of credit whose weights are measured while a group is sampled."""

WITH_FACTOR = (GrpoGuard, FlashGrpo, FairClip, FairClip2)
"""The kinds of credit with a factor of their own on a step's loss."""


@config
class CustomCredit:
    """Weights of the user's own on the native sampler: `kind` is `package.module:name` (docs/plugging_in.md)."""

    families: ClassVar[tuple[Family, ...]] = FAMILIES
    changes_sampler: ClassVar[bool] = False

    kind: OwnKind
    options: Options = field(default_factory=dict)
    """Keyword arguments of your class or function."""


Credit = Annotated[
    Native
    | Reweight
    | Released
    | Variance
    | Interpolate
    | Proportionate
    | Tilted
    | GrpoGuard
    | FlashGrpo
    | FairClip
    | FairClip2
    | Entropy
    | Attention
    | CustomCredit,
    ByKind(),
]

# -- advantages --------------------------------------------------------------------------------------------------------


@config
class GroupAdvantage:
    """(score - mean of its group) / std of the group, or of the whole batch."""

    kind: Literal["group"] = "group"
    scale: Literal["group", "batch"] = "group"
    """The std that divides: of the image's group, or of the whole batch."""
    correction: Literal[0, 1] = 1
    """1 divides by n - 1 in the std, 0 by n."""
    epsilon: NonNegative = 1e-8
    """The number added to the std before dividing."""
    clip: Positive = 5.0
    """The largest magnitude that an advantage may have."""


@config
class HistoryAdvantage:
    """Running statistics of each prompt; those of the batch while a prompt has fewer than `minimum` scores (DDPO)."""

    kind: Literal["prompt_history"] = "prompt_history"
    buffer: Count = 32
    """The number of a prompt's newest scores that are remembered."""
    minimum: Count = 16
    """The fewest scores from which a prompt's own statistics are used."""
    epsilon: NonNegative = 1e-6
    """The number added to the std before dividing."""
    clip: Positive = 5.0
    """The largest magnitude that an advantage may have."""

    def __post_init__(self) -> None:
        if self.minimum > self.buffer:
            raise ValueError(
                f"minimum is {self.minimum} of a buffer of {self.buffer}, which no prompt can reach; "
                "use at most the buffer's size"
            )


@config
class BatchAdvantage:
    """(score - mean of the batch) / std of the batch."""

    kind: Literal["batch"] = "batch"
    epsilon: NonNegative = 1e-6
    """The number added to the std before dividing."""
    clip: Positive = 5.0
    """The largest magnitude that an advantage may have."""


@config
class CustomAdvantage:
    """Advantages of the user's own: `kind` is `package.module:name` (docs/plugging_in.md)."""

    kind: OwnKind
    options: Options = field(default_factory=dict)
    """Keyword arguments of your class or function."""
    clip: Positive = 5.0
    """The largest magnitude that an advantage may have."""


Advantage = Annotated[GroupAdvantage | HistoryAdvantage | BatchAdvantage | CustomAdvantage, ByKind()]
