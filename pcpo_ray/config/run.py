"""A run, complete: every other config class is a part of it."""

import dataclasses
from dataclasses import field
from typing import Annotated, Literal

from pydantic import BeforeValidator

from pcpo_ray.config.algorithm import Advantage, Credit
from pcpo_ray.config.base import Count, NonNegativeInt, Unit, config, one_or_more
from pcpo_ray.config.checks import CHECKS
from pcpo_ray.config.evaluation import Evaluation, Monitors
from pcpo_ray.config.judge import Judge
from pcpo_ray.config.model import Model
from pcpo_ray.config.notify import Notify
from pcpo_ray.config.objective import Objective
from pcpo_ray.config.prompts import Prompts
from pcpo_ray.config.rewards import Reward
from pcpo_ray.config.sampling import Sampling
from pcpo_ray.config.training import Checkpoints, Optimizer, Rollout
from pcpo_ray.config.workers import Workers

OneOrMoreRewards = tuple[Reward, ...] | Reward
"""A list of rewards, or one reward that stands for a list of one."""

TRACKERS = ("tensorboard", "wandb", "mlflow", "comet_ml", "aim", "clearml", "dvclive", "swanlab", "trackio")


@config
class Run:
    """One run, complete."""

    name: str
    """The name of the run and of its folder, `runs/<name>`."""
    seed: NonNegativeInt = 0
    """The number from which all noise, prompt orders and new adapters follow."""
    steps: Annotated[Count, Unit("steps")]
    """Training steps of the whole run."""
    model: Model
    """The model, and what of it is trained."""
    prompts: Prompts
    """The prompts to train on."""
    sampling: Sampling
    """The making of images, and the denoising steps that are trained."""
    rewards: Annotated[tuple[Reward, ...], BeforeValidator(one_or_more, json_schema_input_type=OneOrMoreRewards)]
    """The rewards to train on, one or more."""
    combine: Literal["scores", "advantages"] = "scores"
    """With several rewards: the numbers that are added up by their weights.

    `scores` trains on the sum of their scores; `advantages` on the sum of their advantages, each normalised first.
    """
    credit: Credit
    """The weight that each denoising step's log-ratio carries in the loss: the paper's contribution."""
    advantage: Advantage
    """The rule by which scores become advantages."""
    objective: Objective
    """The loss of an (image, step) pair."""
    rollout: Rollout = field(default_factory=Rollout)
    """The size of a batch."""
    optimizer: Optimizer = field(default_factory=Optimizer)
    """The rule by which the weights are updated."""
    evaluation: Evaluation = field(default_factory=Evaluation)
    """The measurements on prompts that are not trained on."""
    monitors: Monitors = field(default_factory=Monitors)
    """The alarms that end or accompany a run that collapses or hacks its reward."""
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    """The places from which the run can be resumed."""
    workers: Workers = field(default_factory=Workers)
    """The processes of each role, what Ray reserves for them, and how long they may take."""
    trackers: tuple[Literal[TRACKERS], ...] = ()  # type: ignore[valid-type]
    """Experiment trackers that get every number too."""
    notify: Notify | None = None
    """Messages to a webhook when the run fails, raises an alarm or ends."""

    def __post_init__(self) -> None:
        for check in CHECKS:
            check(self)

    def of_evaluation(self, noun: str) -> str:
        """Qualify a noun by the prompts of evaluations: "held-out reward", or "reward of training prompts"."""
        if self.evaluation.held_out:
            return f"held-out {noun}"
        which = "training prompts" if self.evaluation.prompts in (None, self.prompts) else "prompts not held out"
        return which if noun == "prompts" else f"{noun} of {which}"

    @property
    def only_pairwise(self) -> bool:
        """True if all trained rewards compare the images of one prompt with each other, so that their means stay."""
        return all(isinstance(reward, Judge) and reward.mode == "pairwise" for reward in self.rewards)

    @property
    def evaluated(self) -> Sampling:
        """The sampling of evaluations: that of training, changed as evaluation.sampling says."""
        own = self.evaluation.sampling
        if own is None:
            return self.sampling
        guidance = self.sampling.guidance_scale if own.guidance_scale is None else own.guidance_scale
        return dataclasses.replace(
            self.sampling,
            steps=own.steps or self.sampling.steps,
            guidance_scale=guidance,
            negative_prompt=self.sampling.negative_prompt if guidance > 1 else "",
            trained_steps=None,
            subset=None,
            shared_noise=False,
            detach_unconditional=False,
        )
