"""The method: the credit of each step, the advantages, and the objective."""

from typing import Annotated, ClassVar, Literal

from annotated_types import Gt, Lt
from pydantic import Discriminator

from pcpo_ray.config.base import NUMBER, Count, Family, NonNegative, Positive, config

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


@config
class Variance:
    """The minus root at `w_star` (null: the smallest feasible one), with weights that are literally constant."""

    families: ClassVar[tuple[Family, ...]] = ("diffusion",)
    changes_sampler: ClassVar[bool] = True

    kind: Literal["variance"] = "variance"
    w_star: Positive | None = None


@config
class Interpolate:
    """Prediction = reference + lambda (policy - reference), with every weight `w_star` (null: the native mean)."""

    families: ClassVar[tuple[Family, ...]] = ("diffusion",)
    changes_sampler: ClassVar[bool] = True

    kind: Literal["interpolate"] = "interpolate"
    w_star: Positive | None = None


@config
class Proportionate:
    """Each step's weight is proportional to the time it covers (arXiv 2509.25774)."""

    families: ClassVar[tuple[Family, ...]] = ("flow",)
    changes_sampler: ClassVar[bool] = False

    kind: Literal["proportionate"] = "proportionate"


@config
class Tilted:
    """Reweight (diffusion) or proportionate (flow) weights, times a factor that falls linearly along the steps.

    The factor is 1 + `slope` at the first trained step and 1 - `slope` at the last. A slope above 0 favours early,
    noisy steps, one below 0 late steps. Ours: not in a paper.
    """

    families: ClassVar[tuple[Family, ...]] = ("diffusion", "flow")
    changes_sampler: ClassVar[bool] = False

    kind: Literal["tilted"] = "tilted"
    slope: Annotated[float, NUMBER, Gt(-1), Lt(1)]


Credit = Annotated[
    Native | Reweight | Released | Variance | Interpolate | Proportionate | Tilted, Discriminator("kind")
]

# -- advantages --------------------------------------------------------------------------------------------------------


@config
class GroupAdvantage:
    """(score - mean of its group) / std of the group, or of the whole batch."""

    kind: Literal["group"] = "group"
    scale: Literal["group", "batch"] = "group"
    correction: Literal[0, 1] = 1
    epsilon: NonNegative = 1e-8
    clip: Positive = 5.0


@config
class HistoryAdvantage:
    """Running statistics of each prompt; those of the batch while a prompt has fewer than `minimum` scores (DDPO)."""

    kind: Literal["prompt_history"] = "prompt_history"
    buffer: Count = 32
    minimum: Count = 16
    epsilon: NonNegative = 1e-6
    clip: Positive = 5.0

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
    clip: Positive = 5.0


Advantage = Annotated[GroupAdvantage | HistoryAdvantage | BatchAdvantage, Discriminator("kind")]

# -- the objective -----------------------------------------------------------------------------------------------------


@config
class Surrogate:
    """The settings that both surrogates share.

    `clip_scale` weight gives each step the clip range `clip_range` times its weight over the mean weight, because its
    log-ratio spreads in proportion to its weight. `step_loss` noise multiplies each step's loss, outside the clip, by
    the std of its noise over the mean std (TempFlow-GRPO, arXiv 2508.04324). The loss gains `kl` times the KL
    divergence from the reference, which is the model under the adapter.

    `correction` (null: none) weights samples of older weights by the ratio of the present density to theirs, at most
    this much (V-trace, arXiv 1802.01561), and takes log-ratios against the present weights.

    `log_ratio` replay is the difference of two log-probabilities of the stored latents, as in code without the
    decomposed form. Rounding makes it differ from 0 at equal weights, so a run is not stopped for that. It is for
    comparisons. `flow_cps` is the published log-ratio of Flow-CPS (arXiv 2509.05952), whose log-probability leaves out
    1 / (2 std^2): it is 2 std^2 times the decomposed one.
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
