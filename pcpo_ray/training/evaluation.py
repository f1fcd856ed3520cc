"""Evaluation on fixed prompts and seeds: its groups, prompt by prompt, and the numbers made of them.

Every evaluation of a run draws the same noise, so two of them are compared image by image.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float

from pcpo_ray import config
from pcpo_ray.config import TOTAL
from pcpo_ray.data.prompts import PromptSource
from pcpo_ray.data.tasks import evaluation_tasks, watched_training_tasks
from pcpo_ray.data.types import Handle, Scored
from pcpo_ray.errors import RewardError
from pcpo_ray.rewards import quality
from pcpo_ray.runs import intervals
from pcpo_ray.runs.lines import counted
from pcpo_ray.training.dispatcher import Dispatcher

SHOWN = 8
"""The number of prompts, evenly spaced over an evaluation, whose images every evaluation keeps and shows."""


def shown(prompts: int) -> list[int]:
    """Return the places of the prompts whose images every evaluation keeps."""
    count = min(SHOWN, prompts)
    return [n * prompts // count for n in range(count)]


def run_evaluation(
    run: config.Run,
    dispatcher: Dispatcher,
    held_out: PromptSource,
    version: int,
    *,
    oldest: int,
    prompts: PromptSource,
) -> tuple[list[Scored], list[Scored]]:
    """Evaluate a version that was published: one group a prompt, first the held-out ones, then training prompts.

    Versions before `oldest` are not needed any more.
    """
    if run.optimizer.average is not None:
        dispatcher.publish(oldest=oldest, averaged=True)
    dispatcher.enter("evaluate", version)
    tasks = evaluation_tasks(run, held_out, version)
    count = len(tasks)
    tasks += watched_training_tasks(run, prompts, version)
    dispatcher.submit(tasks)
    scored = dispatcher.gather(tasks)
    return by_prompt(scored[:count]), by_prompt(scored[count:])


def evaluation_summary(
    run: config.Run, scored: Sequence[Scored], seen: Sequence[Scored], assessor: quality.Assessor | None
) -> dict[str, Any]:
    """Summarise an evaluation: `prompts`, `rewards`, and where there are any `train_rewards` and `quality`.

    `scored` counts the images with a score, where some have none.
    """
    found: dict[str, Any] = {"prompts": len(scored), "rewards": _estimates(run, scored)}
    counts = {name: int(np.isfinite(values).sum()) for name, values in table(run, scored).items()}
    if min(counts.values()) < len(scored) * run.evaluation.images:
        found["scored"] = counts
    if seen:
        found["train_rewards"] = _estimates(run, seen)
    if assessor is not None:
        found["quality"] = assessor([group.measured for group in scored])
    return found


def _estimates(run: config.Run, scored: Sequence[Scored]) -> dict[str, dict[str, float | None]]:
    return {name: intervals.estimate(value).row() for name, value in table(run, scored).items()}


def by_prompt(scored: Sequence[Scored]) -> list[Scored]:
    """Split tasks of several prompts into one group a prompt, in the order of their positions."""
    return [part for one in scored for part in _split(one)]


def _split(scored: Scored) -> Iterator[Scored]:
    task = scored.rollout.task
    for n, prompt in enumerate(task.prompts):
        rows = slice(n * task.images, (n + 1) * task.images)
        rollout = replace(
            scored.rollout,
            task=replace(task, position=task.position + n, prompt=prompt, more=()),
            images=Handle(reference=scored.rollout.images.reference, rows=rows),
        )
        yield replace(
            scored,
            rollout=rollout,
            scores={name: values[rows] for name, values in scored.scores.items()},
            measured=quality.rows_of(scored.measured, rows),
            described={name: texts[rows] for name, texts in scored.described.items()},
        )


def table(run: config.Run, scored: Sequence[Scored]) -> dict[str, Float[np.ndarray, "P N"]]:
    """Tabulate each reward's scores and the trained total, a row a prompt; NaN where a score is missing."""
    weights = {reward.name: reward.weight for reward in run.rewards}
    names = sorted(scored[0].scores, key=lambda name: name not in weights)  # what is trained on comes first
    values = {name: np.array([group.scores[name] for group in scored], np.float64) for name in names}
    return {TOTAL: np.array([group.total(weights) for group in scored]), **values}


def check_scored(run: config.Run, scored: Sequence[Scored]) -> None:
    """Check that each reward that is trained on scores something. Raises RewardError."""
    for reward in run.rewards:
        causes = {group.failures[reward.name] for group in scored if reward.name in group.failures}
        if causes and not any(np.isfinite(group.scores[reward.name]).any() for group in scored):
            raise RewardError(
                f"the reward {reward.name} scored none of the first evaluation's "
                f"{counted(len(scored) * run.evaluation.images, 'image')}, so there is nothing to train on: "
                f"{'; '.join(sorted(causes)[:SHOWN])}; fix it, so that it returns a number for what it can score"
            )


def columns(
    run: config.Run, step: int, scored: Sequence[Scored], values: dict[str, Float[np.ndarray, "P N"]]
) -> dict[str, Any]:
    """Make the columns of evaluations.parquet: one row an image, `values` is what `table` made.

    `described` has a text for each reward that says what it saw; there is no such column where none does.
    """
    images = run.evaluation.images
    described = [{name: texts[n] for name, texts in group.described.items()} for group in scored for n in range(images)]
    return {
        "step": np.full(values[TOTAL].size, step),
        "prompt": [group.rollout.task.prompt.text for group in scored for _ in range(images)],
        "position": np.repeat(np.arange(len(scored)), images),
        "sample": np.tile(np.arange(images), len(scored)),
        **{name: value.ravel() for name, value in values.items()},
        **({"described": described} if any(described) else {}),
    }
