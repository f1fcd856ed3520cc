"""Evaluation on fixed prompts and seeds, and intervals for what it finds.

Every evaluation of a run draws the same noise, so two of them are compared image by image. Images of one prompt are
not independent, nor are the same text's at two places: intervals resample prompts, each text being one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from pcpo_ray import config
from pcpo_ray.data.types import Handle, Scored
from pcpo_ray.rewards import quality

TOTAL, FEWEST = config.TOTAL, config.FEWEST


def by_prompt(scored: Sequence[Scored]) -> list[Scored]:
    """A group a prompt, in the order of their positions."""
    return [part for one in scored for part in _apart(one)]


def _apart(scored: Scored) -> Iterator[Scored]:
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
        )


def table(run: config.Run, scored: Sequence[Scored]) -> dict[str, Float[np.ndarray, "P N"]]:
    """Each reward's scores and the trained total, a row a prompt; NaN where a score is missing."""
    names = list(scored[0].scores)
    values = {name: np.array([group.scores[name] for group in scored], np.float64) for name in names}
    weights = {reward.name: reward.weight for reward in run.rewards}
    return {TOTAL: np.array([group.total(weights) for group in scored]), **values}
