"""The checks that need more than one part of a run, a function each; every one raises ValueError."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from pcpo_ray.config.algorithm import (
    MEASURED,
    WITH_FACTOR,
    Attention,
    Credit,
    GroupAdvantage,
    Interpolate,
)
from pcpo_ray.config.base import kinds_by_family
from pcpo_ray.config.exactness import EXACTNESS
from pcpo_ray.config.model import BACKBONES, Full
from pcpo_ray.config.objective import DivergenceMask
from pcpo_ray.config.rewards import OUR_NAMES, SHIPPED_REWARDS
from pcpo_ray.config.sampling import CoefficientsPreserving, Process, Renoised, Window
from pcpo_ray.config.shipped import ShippedReward

if TYPE_CHECKING:
    from pcpo_ray.config.run import Run


LONGEST_NAME = 200
"""The bytes of a run's name; file systems take 255, and files beside the folder have longer names."""


def name_is_a_folder(run: "Run") -> None:
    """Refuse a name that is no single folder name, or that a line of a log or of a command cannot hold."""
    if not run.name or Path(run.name).name != run.name or run.name.startswith("."):
        raise ValueError(f"name is {run.name!r}; expected one folder name, without slashes or a leading dot")
    if not run.name.isprintable() or run.name.startswith("-") or len(run.name.encode()) > LONGEST_NAME:
        raise ValueError(
            f"name is {run.name!r:.80}; expected letters that can be printed, no leading dash, as of an option, and at "
            f"most {LONGEST_NAME} bytes"
        )


def some_reward_is_trained(run: "Run") -> None:
    """Refuse a run without rewards, or with the weight 0 for all of them."""
    if not run.rewards:
        raise ValueError("rewards is empty; give at least one reward to train on")
    if not any(reward.weight for reward in run.rewards):
        raise ValueError("rewards all have the weight 0, so nothing is trained on them; give one another weight")


def reward_names_are_free(run: "Run") -> None:
    """Refuse a reward whose name is one of ours, or another shipped reward's."""
    for reward in (*run.rewards, *run.evaluation.rewards):
        if reward.name in OUR_NAMES or (reward.name != reward.kind and reward.name in SHIPPED_REWARDS):
            raise ValueError(
                f"the reward {reward.kind} is named {reward.name!r}, as something else is ({', '.join(OUR_NAMES)}, "
                "and the shipped rewards have their names); give it another `label`"
            )


def reward_names_are_distinct(run: "Run") -> None:
    """Refuse two rewards of one name in one list."""
    for where, rewards in (("rewards", run.rewards), ("evaluation.rewards", run.evaluation.rewards)):
        names = [reward.name for reward in rewards]
        if len(set(names)) != len(names):
            raise ValueError(
                f"{where} names the same reward twice: {names}; give each one once, and where two classes of your "
                "own have one name, or one class stands there twice, give each a `label`"
            )


def watched_rewards_are_the_trained_ones(run: "Run") -> None:
    """Refuse an evaluated reward that has a trained one's name and other settings."""
    trained = {reward.name: dataclasses.replace(reward, weight=1.0) for reward in run.rewards}
    for reward in run.evaluation.rewards:
        other = dataclasses.replace(reward, weight=1.0)
        if trained.get(reward.name, other) != other:
            raise ValueError(
                f"evaluation.rewards has another {reward.name} than rewards, and one name is one column of scores; "
                "give both the same settings, or leave it out of evaluation.rewards (it is evaluated anyway), or "
                "give one of your own a `label`"
            )


def groups_have_two_images(run: "Run") -> None:
    """Refuse group-relative advantages in groups of one image."""
    if isinstance(run.advantage, GroupAdvantage) and run.rollout.images < 2:
        raise ValueError(
            f"rollout.images is {run.rollout.images}: a group of one has no relative advantage; "
            "use at least 2 images a prompt, or advantage.kind=batch"
        )


def compared_images_are_two(run: "Run") -> None:
    """Refuse a reward that compares a group's images where a group has one."""
    for path, images, rewards in (
        ("rollout.images", run.rollout.images, run.rewards),
        ("evaluation.images", run.evaluation.images, (*run.rewards, *run.evaluation.rewards)),
    ):
        names = [one.name for one in rewards if isinstance(one, ShippedReward) and one.compares_images]
        if images < 2 and names:
            raise ValueError(f"{path} is {images}, and {names[0]} compares a prompt's images; use at least 2")


def minibatches_have_groups(run: "Run") -> None:
    """Refuse more mini-batches than the batch has groups."""
    if run.optimizer.minibatches > run.rollout.prompts:
        raise ValueError(
            f"optimizer.minibatches is {run.optimizer.minibatches}, for {run.rollout.prompts} groups a batch; "
            "set it to at most rollout.prompts"
        )


def half_types_agree(run: "Run") -> None:
    """Refuse bf16 autocast over a float16 model."""
    if run.model.dtype == "float16" and run.optimizer.mixed_precision == "bf16":
        raise ValueError(
            "optimizer.mixed_precision is bf16 with model.dtype=float16, and torch does not mix these half types; "
            "set model.dtype to float32 or bfloat16"
        )


def micro_batch_can_be_tried(run: "Run") -> None:
    """Refuse the search for a micro-batch where ranks cannot search apart."""
    if run.optimizer.micro_batch == "auto" and run.workers.learner.strategy == "fsdp2":
        raise ValueError(
            "optimizer.micro_batch is auto with workers.learner.strategy=fsdp2, whose ranks cannot try sizes apart; "
            "give a number, or leave it null"
        )


def optimizer_fits_what_is_trained(run: "Run") -> None:
    """Refuse 8-bit moments of sharded weights, and an exemption from weight decay that exempts nothing."""
    optimizer = run.optimizer
    if optimizer.kind == "adamw8bit" and run.workers.learner.strategy == "fsdp2":
        raise ValueError(
            "optimizer.kind is adamw8bit with workers.learner.strategy=fsdp2, and its moments cannot be split over "
            "ranks; set optimizer.kind=adamw, whose moments fsdp2 splits, or workers.learner.strategy=ddp"
        )
    if not optimizer.decay_norms_and_biases and not isinstance(run.model.train, Full):
        raise ValueError(
            "optimizer.decay_norms_and_biases is false with model.train.kind=lora, which trains neither; leave it out"
        )
    if optimizer.warmup >= run.steps:
        raise ValueError(
            f"optimizer.warmup is {optimizer.warmup} of {run.steps} steps, so the learning rate never reaches its full "
            "value; use fewer"
        )


def kinds_fit_the_family(run: "Run") -> None:
    """Refuse a shift, a sampling process or a credit kind that the model's family does not have."""
    family = run.model.backbone.family
    if run.sampling.shift is not None and family != "flow":
        raise ValueError(f"sampling.shift is for flow models; leave it out with model.kind={run.model.kind}")
    for path, kind, union in (
        ("sampling.process.kind", run.sampling.process.kind, Process),
        ("credit.kind", run.credit.kind, Credit),
    ):
        expected = kinds_by_family(union)[family]
        if ":" not in kind and kind not in expected:
            raise ValueError(
                f"{path} is {kind!r}, which model.kind={run.model.kind} does not have; expected one of {list(expected)}"
            )


def log_ratio_fits_the_credit(run: "Run") -> None:
    """Refuse a log-ratio that has its sampler's own weights with another credit or another process."""
    if run.objective.log_ratio != "decomposed" and run.credit.kind != "native":
        raise ValueError(
            f"objective.log_ratio is {run.objective.log_ratio} with credit.kind={run.credit.kind}, and that "
            "log-ratio has its sampler's own weights; set credit.kind=native, or objective.log_ratio=decomposed"
        )
    if run.objective.log_ratio == "flow_cps" and not isinstance(run.sampling.process, CoefficientsPreserving):
        raise ValueError(
            f"objective.log_ratio is flow_cps with sampling.process.kind={run.sampling.process.kind}; it is the "
            "published loss of Flow-CPS: set sampling.process.kind=coefficients_preserving, or "
            "objective.log_ratio=decomposed"
        )


def losses_have_one_factor(run: "Run") -> None:
    """Refuse a factor of each step's loss beside the one that the credit has."""
    if run.objective.step_loss != "uniform" and isinstance(run.credit, WITH_FACTOR):
        raise ValueError(
            f"objective.step_loss is {run.objective.step_loss} with credit.kind={run.credit.kind}, which has a factor "
            "of its own on each step's loss; set objective.step_loss=uniform, or another credit.kind"
        )


def divergences_are_from_one_policy(run: "Run") -> None:
    """Refuse a correction of log-ratios where the mask's divergence stays that from the weights that sampled."""
    asked = run.objective
    if isinstance(asked, DivergenceMask) and asked.correction is not None and asked.old_predictions == "sampled":
        raise ValueError(
            f"objective.correction is {asked.correction:g} with objective.kind=divergence_mask, whose "
            "divergence is from the weights that sampled, while corrected log-ratios are to the present ones; leave "
            "the correction out, or set objective.kind=clipped_ratio or objective.old_predictions=recomputed"
        )


def measures_compare_steps(run: "Run") -> None:
    """Refuse credit that is measured where there is nothing to measure, or to compare."""
    kind = f"credit.kind={run.credit.kind}"
    if isinstance(run.credit, MEASURED) and isinstance(run.sampling.subset, Window):
        raise ValueError(
            f"sampling.subset.kind is window with {kind}, which compares all trained steps of an image, and outside "
            "the window they draw no noise; set sampling.subset=null or its kind to share, or another credit.kind"
        )
    if isinstance(run.credit, Attention):
        if run.model.backbone.attention is None:
            read = [name for name, one in BACKBONES.items() if one.attention is not None]
            raise ValueError(
                f"credit.kind is attention with model.kind={run.model.kind}, whose attention to the prompt is not "
                f"read; expected one of {read}: set another credit.kind"
            )
        if run.sampling.steps < 2:
            raise ValueError(
                f"sampling.steps is {run.sampling.steps} with {kind}, which compares the network's calls; use at "
                "least 2"
            )


def renoised_images_are_no_steps(run: "Run") -> None:
    """Refuse what is defined by the noise of a sampler's steps where pairs are noised images."""
    if not isinstance(run.sampling.process, Renoised):
        return
    for asks, what, remedy in (
        (
            isinstance(run.credit, (*WITH_FACTOR, *MEASURED)),
            f"credit.kind={run.credit.kind}",
            "set credit.kind to native, reweight, proportionate, tilted or one of your own",
        ),
        (run.objective.step_loss != "uniform", f"objective.step_loss={run.objective.step_loss}", "set it to uniform"),
        (run.objective.log_ratio != "decomposed", f"objective.log_ratio={run.objective.log_ratio}", "leave it out"),
        (run.objective.correction is not None, f"objective.correction={run.objective.correction}", "leave it out"),
        (
            run.evaluation.sampling is not None and not run.evaluation.sampling.deterministic,
            "evaluation.sampling with the sampler's noise",
            "set evaluation.sampling.deterministic=true",
        ),
    ):
        if asks:
            raise ValueError(
                f"{what} with sampling.process.kind=renoised, whose images are drawn without noise; {remedy}"
            )
    if run.sampling.shared_noise:
        raise ValueError(
            "sampling.shared_noise is true with sampling.process.kind=renoised, which draws no other noise, so that "
            "all images of a group would be the same; set it to false"
        )


def evaluations_can_sample(run: "Run") -> None:
    """Refuse evaluations with their own noisy sampling where the credit changes the sampler."""
    own = run.evaluation.sampling
    if own is not None and not own.deterministic and run.credit.changes_sampler:
        raise ValueError(
            f"evaluation.sampling has the sampler's noise with credit.kind={run.credit.kind}, which is a sampler "
            "of its own at sampling.steps; set evaluation.sampling.deterministic=true, or leave "
            "evaluation.sampling out to evaluate as in training"
        )


def reference_is_under_an_adapter(run: "Run") -> None:
    """Refuse full fine-tuning with settings that need the reference model."""
    if isinstance(run.model.train, Full):
        for asks, what in (
            (isinstance(run.credit, Interpolate), "credit.kind=interpolate"),
            (run.objective.kl > 0, f"objective.kl={run.objective.kl:g}"),
        ):
            if asks:
                raise ValueError(f"{what} needs the reference under an adapter; set model.train.kind=lora")


CHECKS = (
    name_is_a_folder,
    some_reward_is_trained,
    reward_names_are_free,
    reward_names_are_distinct,
    watched_rewards_are_the_trained_ones,
    groups_have_two_images,
    compared_images_are_two,
    minibatches_have_groups,
    half_types_agree,
    micro_batch_can_be_tried,
    optimizer_fits_what_is_trained,
    kinds_fit_the_family,
    log_ratio_fits_the_credit,
    losses_have_one_factor,
    divergences_are_from_one_policy,
    measures_compare_steps,
    renoised_images_are_no_steps,
    evaluations_can_sample,
    reference_is_under_an_adapter,
    *EXACTNESS,
)
"""All checks, in the order in which they are made."""
