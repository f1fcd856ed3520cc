"""What must be equal in two arms for their difference to be the method's."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal

from pcpo_ray import config

Axis = Literal[
    "model",
    "storage dtype",
    "denoising",
    "trained steps",
    "mean credit weight",
    "clip fraction",
    "batch",
    "steps",
    "prompts",
    "rewards",
    "evaluation",
]
"""
storage dtype: what trajectories are kept and predictions computed in; denoising: steps, guidance, size, shift;
trained steps: their timesteps, and the part of them that a batch is trained on; mean credit weight: over those;
clip fraction: the range that |log ratio| is counted against, and the log-ratio that is; batch: prompts, images, age,
optimizer steps; steps: updates in a run.
"""

TOLERANCE = 1e-6
"""Relative difference of two mean weights that counts as none."""


def axes(run: config.Run) -> dict[str, Any]:
    """The run's value on every axis, as plain data. Raises the PcpoError of a schedule or credit that cannot be."""
    from pcpo_ray import models, policy

    sampling, objective, optimizer = run.sampling, run.objective, run.optimizer
    schedule = models.schedule_of(models.folder_of(run.model), run.model, sampling)
    plan = policy.plan(run.credit, sampling, schedule)
    subset = "all of them" if sampling.subset is None else asdict(sampling.subset)
    return {
        "model": {key: value for key, value in asdict(run.model).items() if key != "dtype"},
        "storage dtype": [sampling.storage, run.model.dtype, optimizer.mixed_precision],
        "denoising": {key: getattr(sampling, key) for key in ("steps", "guidance_scale", "height", "width", "shift")},
        "trained steps": [[schedule.timesteps[index] for index in plan.trained], subset],
        "mean credit weight": math.fsum(plan.weights[index] for index in plan.trained) / len(plan.trained),
        "clip fraction": [objective.clip_range, objective.clip_scale, objective.log_ratio],
        "batch": [asdict(run.rollout), optimizer.updates, optimizer.epochs],
        "steps": run.steps,
        "prompts": asdict(run.prompts),
        "rewards": [[asdict(reward) for reward in run.rewards], run.combine],
        "evaluation": asdict(run.evaluation),
    }


def differing(one: config.Run, other: config.Run) -> dict[str, tuple[Any, Any]]:
    """The axes on which two runs differ, with their values."""
    left, right = axes(one), axes(other)
    return {axis: (left[axis], right[axis]) for axis in left if not same(left[axis], right[axis])}


def same(left: Any, right: Any) -> bool:
    """Equal, up to rounding where numbers are compared."""
    if isinstance(left, float) and isinstance(right, float):
        return math.isclose(left, right, rel_tol=TOLERANCE)
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)
