"""The objective: what is made of log-ratios and advantages."""

from dataclasses import field
from typing import Annotated, Literal

from pcpo_ray.config.base import ByKind, NonNegative, Options, OwnKind, Positive, config

MISMATCH = 1e-3
"""The default of `max_mismatch`: 5 times what rounding to bfloat16 makes at SD1.5's most sensitive timestep."""


@config
class Surrogate:
    """The settings that all objectives share."""

    step_loss: Literal["uniform", "noise"] = "uniform"
    """`noise` multiplies a step's loss by its noise's std over the mean std (TempFlow-GRPO, arXiv 2508.04324)."""
    kl: NonNegative = 0.0
    """The factor of the KL divergence from the model under the adapter, which is added to the loss."""
    old_predictions: Literal["sampled", "recomputed"] = "sampled"
    """The predictions that log-ratios are taken to: the sampler's, or the learner's own at an update's beginning.

    `sampled` is exact and free: sampler and learner compute the same bits. `recomputed` lets the sampler compute
    otherwise (docs/old_predictions.md) and costs one more prediction of each pair after the first optimizer step.
    """
    max_mismatch: Positive = MISMATCH
    """With `recomputed`: the largest mismatch of sampler and learner at a timestep; above it the run stops.

    It is the rms of the log-ratio of the learner's predictions to the sampler's, where both have the same weights.
    """
    correction: Positive | None = None
    """The largest importance weight of samples from older weights (V-trace, arXiv 1802.01561).

    With it, log-ratios are taken against the present weights. null: no importance weights, and log-ratios against the
    weights that sampled. With `old_predictions: recomputed` it weighs all samples, and so corrects the mismatch too.
    """
    log_ratio: Literal["decomposed", "replay", "flow_cps"] = "decomposed"
    """The formula of the log-ratio; `replay` and `flow_cps` are for comparisons with other code.

    `replay` is the difference of two log-probabilities of the stored latents, as in code without the decomposed form.
    Rounding makes it differ from 0 at equal weights, so a run is not stopped for that. `flow_cps` is the published
    log-ratio of Flow-CPS (arXiv 2509.05952), whose log-probability leaves out 1 / (2 std^2): it is 2 std^2 times the
    decomposed one.
    """


@config
class Clipped(Surrogate):
    """The settings that all objectives with a clip range share."""

    clip_range: Positive = 1e-4
    """The distance from 0 beyond which a log-ratio's gradient is cut off."""
    clip_scale: Literal["constant", "weight"] = "constant"
    """`weight` multiplies each step's clip range by its weight over the mean weight, as its log-ratio spreads so."""


@config
class ClippedRatio(Clipped):
    """PPO's clipped ratio."""

    kind: Literal["clipped_ratio"] = "clipped_ratio"


@config
class LogHinge(Clipped):
    """PCPO's hinge on the log-ratio."""

    kind: Literal["log_hinge"] = "log_hinge"


@config
class DivergenceMask(Surrogate):
    """The ratio without a clip range, masked by the divergence from the weights that sampled (arXiv 2606.11025).

    Flow-DPPO: a pair's loss is 0 where the Gaussians' KL divergence has reached `threshold` and the ratio would move
    further away from 1.
    """

    kind: Literal["divergence_mask"] = "divergence_mask"
    threshold: Positive = 1e-5
    """The divergence, in nats a dimension, from which a pair is masked."""


@config
class CustomObjective(Clipped):
    """A loss of the user's own for each (image, step) pair: `kind` is `package.module:name` (docs/plugging_in.md)."""

    kind: OwnKind
    options: Options = field(default_factory=dict)
    """Keyword arguments of your class or function."""


Objective = Annotated[ClippedRatio | LogHinge | DivergenceMask | CustomObjective, ByKind()]
