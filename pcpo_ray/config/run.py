"""A run, complete: every other config class is a part of it."""

import dataclasses
from dataclasses import field
from typing import Annotated, Literal

from pcpo_ray.config.algorithm import Advantage, Credit, Objective
from pcpo_ray.config.base import Count, NonNegativeInt, config
from pcpo_ray.config.checks import CHECKS
from pcpo_ray.config.evaluation import Evaluation, Monitors
from pcpo_ray.config.model import Model
from pcpo_ray.config.prompts import Prompts
from pcpo_ray.config.rewards import Reward
from pcpo_ray.config.sampling import Sampling
from pcpo_ray.config.training import Checkpoints, Optimizer, Rollout
from pcpo_ray.config.workers import Workers

TRACKERS = ("tensorboard", "wandb", "mlflow", "comet_ml", "aim", "clearml", "dvclive", "swanlab", "trackio")


@config
class Run:
    """One run, complete.

    With several rewards, `combine` scores trains on the weighted sum of their scores. `combine` advantages trains on
    the weighted sum of their advantages, each reward normalised first.
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
        for check in CHECKS:
            check(self)

    def of_evaluation(self, noun: str) -> str:
        """Qualify a noun by the prompts of evaluations: "held-out reward", or "reward of training prompts"."""
        if self.evaluation.held_out:
            return f"held-out {noun}"
        which = "training prompts" if self.evaluation.prompts in (None, self.prompts) else "prompts not held out"
        return which if noun == "prompts" else f"{noun} of {which}"

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
            trained_steps=None,
            subset=None,
            shared_noise=False,
            detach_unconditional=False,
        )
