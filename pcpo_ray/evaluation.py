"""Evaluation on fixed prompts and seeds, and intervals for what it finds.

Every evaluation of a run draws the same noise, so two of them are compared image by image. Images of one prompt are
not independent, nor are the same text's at two places: intervals resample prompts, each text being one.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from jaxtyping import Float

from pcpo_ray import config, quality
from pcpo_ray.prompts import PromptSource
from pcpo_ray.trajectory import Handle, Prompt, Scored, Task, seed_of

TOTAL, FEWEST = config.TOTAL, config.FEWEST


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over images, and its 95% bootstrap interval over prompts; NaN bounds for fewer than `FEWEST`."""

    mean: float
    low: float
    high: float

    @property
    def bounded(self) -> bool:
        """Whether there is an interval."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    def row(self) -> dict[str, float | None]:
        """As it is recorded: what is no number is null."""
        return {name: value if math.isfinite(value) else None for name, value in asdict(self).items()}

    @classmethod
    def of(cls, row: Mapping[str, float | None]) -> "Estimate":
        """What `row` recorded."""
        mean, low, high = (math.nan if value is None else value for value in (row["mean"], row["low"], row["high"]))
        return cls(mean=mean, low=low, high=high)


def tasks(run: config.Run, source: PromptSource, version: int) -> list[Task]:
    """The evaluation: the same prompts, positions, noise and tasks at every version.

    As many prompts a task as have no more images than a group to train on: what fits then fits now.
    """
    return _tasks(run, source.distinct(run.evaluation.count), version, first=0)


def training_tasks(run: config.Run, source: PromptSource, version: int) -> list[Task]:
    """The training prompts that are evaluated besides, at positions after all others."""
    return _tasks(run, source.distinct(run.evaluation.train_count), version, first=run.evaluation.count)


def _tasks(run: config.Run, prompts: Sequence[Prompt], version: int, *, first: int) -> list[Task]:
    found = []
    size = max(1, run.rollout.images // run.evaluation.images)
    for begin in range(0, len(prompts), size):
        together = prompts[begin : begin + size]
        task = Task(
            step=0,
            position=first + begin,
            prompt=together[0],
            images=run.evaluation.images,
            version=version,
            purpose="evaluate",
            averaged=run.optimizer.average is not None,
            more=tuple(together[1:]),
        )
        found.append(task)
    return found


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


def estimate(values: Float[np.ndarray, "P N"]) -> Estimate:
    """Of the mean over prompts, each counting with the mean of its images that have a score; NaN if none has.

    Rows are independent: a row has a text of its own (`tasks`).
    """
    per_prompt = [row[np.isfinite(row)].mean() for row in values if np.isfinite(row).any()]
    if not per_prompt:
        return Estimate(mean=float("nan"), low=float("nan"), high=float("nan"))
    means = np.array(per_prompt)
    if len(means) < FEWEST:
        return Estimate(mean=float(means.mean()), low=math.nan, high=math.nan)
    if np.ptp(means) == 0:
        return Estimate(mean=float(means.mean()), low=float(means.mean()), high=float(means.mean()))
    from scipy.stats import bootstrap

    found = bootstrap(
        (means,), np.mean, n_resamples=9999, method="percentile", rng=np.random.default_rng(seed_of("bootstrap"))
    ).confidence_interval
    return Estimate(mean=float(means.mean()), low=float(found.low), high=float(found.high))


def paired(before: Float[np.ndarray, "P N"], after: Float[np.ndarray, "P N"]) -> Estimate:
    """Of the mean of after - before, image by image at the same prompt and seed."""
    return estimate(after - before)


def change(before: Float[np.ndarray, "P N"], after: Float[np.ndarray, "P N"]) -> dict[str, float | None]:
    """`paired`, as recorded, and its mean in `deviations`: standard deviations of all scores before and after.

    Scores that were all the same, and now are all others, have changed by 2.
    """
    found = paired(before, after)
    if math.isnan(found.mean):
        return {**found.row(), "deviations": None}
    spread = float(np.nanstd(np.stack([before, after])))
    return {**found.row(), "deviations": found.mean / spread if spread else 0.0}
