"""The checks of what makes sampler and learner compute other bits; every one raises ValueError.

With `objective.old_predictions: sampled` both compute the same bits. What cannot promise that needs `recomputed`.
"""

from typing import TYPE_CHECKING

from pcpo_ray.config.algorithm import Attention
from pcpo_ray.config.objective import MISMATCH
from pcpo_ray.config.sampling import Renoised

if TYPE_CHECKING:
    from pcpo_ray.config.run import Run

RECOMPUTED = "set objective.old_predictions=recomputed"


def other_bits_are_recomputed(run: "Run") -> None:
    """Refuse what changes a role's bits where log-ratios are taken to the sampler's predictions."""
    if run.objective.old_predictions == "recomputed":
        return
    for asks, what, why in (
        (run.sampling.compile, "sampling.compile is true", "compiled code computes other bits than the learner's"),
        (run.optimizer.compile, "optimizer.compile is true", "compiled code computes other bits than the sampler's"),
        (
            run.sampling.batch == "auto",
            "sampling.batch is auto",
            "another batch computes other bits than the learner's",
        ),
    ):
        if asks:
            raise ValueError(f"{what} with objective.old_predictions=sampled, and {why}; {RECOMPUTED}, or leave it out")
    if run.objective.max_mismatch != MISMATCH:
        raise ValueError(
            f"objective.max_mismatch is {run.objective.max_mismatch:g} with objective.old_predictions=sampled, where "
            f"any mismatch ends the run at its first update; {RECOMPUTED}, or leave it out"
        )


def recomputed_ratios_are_decomposed(run: "Run") -> None:
    """Refuse a log-ratio to stored log-probabilities where old predictions are recomputed."""
    if run.objective.old_predictions == "recomputed" and run.objective.log_ratio == "replay":
        raise ValueError(
            "objective.log_ratio is replay with objective.old_predictions=recomputed, and a replay is compared with "
            "the sampler's log-probabilities; set objective.log_ratio=decomposed, or old_predictions=sampled"
        )


def recomputed_samples_are_weighed(run: "Run") -> None:
    """Refuse older samples that would count as those of the present weights."""
    if wrong := unweighed(run, run.rollout.max_staleness):
        raise ValueError(wrong)


def unweighed(run: "Run", max_staleness: int) -> str:
    """Say why a run may not learn samples of that age; empty if it may."""
    objective = run.objective
    if objective.old_predictions == "sampled" or not max_staleness or objective.correction is not None:
        return ""
    remedy = "set rollout.max_staleness=0"
    if not isinstance(run.sampling.process, Renoised):  # which has no correction
        remedy = f"set objective.correction (2, for example), which weighs them by old / sampler, or {remedy}"
    return (
        f"rollout.max_staleness is {max_staleness} with objective.old_predictions=recomputed and no "
        "objective.correction: samples of older weights would count as if the present ones had sampled them; "
        f"{remedy}"
    )


def one_network_is_compiled_once(run: "Run") -> None:
    """Refuse to compile the network for one role where both share it, and one that is sharded."""
    learner = run.workers.learner
    if learner.samples and run.sampling.compile != run.optimizer.compile:
        raise ValueError(
            f"sampling.compile is {_told(run.sampling.compile)} and optimizer.compile is "
            f"{_told(run.optimizer.compile)} with workers.learner.samples=true, where both use one network; set both "
            "alike, or samples=false"
        )
    if run.optimizer.compile and learner.strategy == "fsdp2":
        raise ValueError(
            "optimizer.compile is true with workers.learner.strategy=fsdp2, which gathers parameters inside of what "
            "would be compiled; leave it out, or set workers.learner.strategy=ddp"
        )


def attention_can_be_read(run: "Run") -> None:
    """Refuse credit that reads attention maps where another program computes the attention."""
    if not isinstance(run.credit, Attention):
        return
    for asks, what in (
        (run.sampling.compile, "sampling.compile=true"),
        (
            run.model.attention is not None and "native" not in run.model.attention,
            f"model.attention={run.model.attention}",
        ),
    ):
        if asks:
            raise ValueError(
                f"credit.kind is attention with {what}, where no maps can be read beside the network's own attention; "
                "leave it out, or set another credit.kind"
            )


def _told(flag: bool) -> str:
    return str(flag).lower()


EXACTNESS = (
    other_bits_are_recomputed,
    recomputed_ratios_are_decomposed,
    recomputed_samples_are_weighed,
    one_network_is_compiled_once,
    attention_can_be_read,
)
"""All checks of this file, in the order in which they are made."""
