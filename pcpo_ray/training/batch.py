"""Training batches: scores become advantages, and the whole becomes a row of metrics."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, assert_never

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pcpo_ray import config
from pcpo_ray.algorithm import advantages
from pcpo_ray.config import TOTAL
from pcpo_ray.data.types import Scored
from pcpo_ray.data.updates import TrainingGroup
from pcpo_ray.errors import RewardError
from pcpo_ray.runs.lines import counted
from pcpo_ray.training.dispatcher import why
from pcpo_ray.training.own_advantage import OwnAdvantage
from pcpo_ray.training.recorder import Recorder

History = advantages.PromptHistory | OwnAdvantage
"""A rule that turns a column of scores into advantages and may remember earlier ones."""


@dataclass(frozen=True, kw_only=True)
class TrainingBatch:
    """The groups that the learner gets, and the metrics that are recorded of them."""

    groups: Sequence[TrainingGroup]
    metrics: Mapping[str, Any]


def columns(run: config.Run) -> dict[str, dict[str, float]]:
    """Return the weights of the rewards in each column that becomes advantages: one total, or a column a reward."""
    weights = {reward.name: reward.weight for reward in run.rewards}
    return {TOTAL: weights} if run.combine == "scores" else {name: {name: 1.0} for name in weights}


def make_histories(run: config.Run) -> dict[str, History]:
    """Make each column's per-prompt statistics, or its rule of the user's own, if the config's advantage has them."""
    kind = run.advantage
    if isinstance(kind, config.CustomAdvantage):
        return {name: OwnAdvantage(kind) for name in columns(run)}
    if not isinstance(kind, config.HistoryAdvantage):
        return {}
    return {
        name: advantages.PromptHistory(buffer=kind.buffer, minimum=kind.minimum, epsilon=kind.epsilon)
        for name in columns(run)
    }


def training_batch(
    run: config.Run, scored: Sequence[Scored], histories: Mapping[str, History], step: int
) -> TrainingBatch:
    """Make the batch with its advantages and its metrics; groups with missing scores are dropped whole.

    Raises RewardError when no group is left.
    """
    whole = [group for group in scored if not group.missing]
    if not whole:
        raise RewardError(
            f"step {step}: scores are missing in all of {counted(len(scored), 'group')}, so there is nothing to learn "
            f"from: {why(scored[0].failures)}; fix the reward or its server"
        )
    weights = {reward.name: reward.weight for reward in run.rewards}
    totals = _scores(whole, weights)
    prompts = [group.rollout.task.prompt.text for group in whole]
    values = torch.zeros_like(totals)
    rounding = {name: advantages.rounding(_scores(whole, {name: 1.0})) for name in weights}
    rounded = torch.zeros(len(whole), dtype=torch.bool)
    for name, parts in columns(run).items():
        scores = _scores(whole, parts)
        tolerance = torch.stack([abs(weight) * rounding[part] for part, weight in parts.items()]).sum(0)
        rounded |= advantages.apart_by_rounding(scores, tolerance)
        own = normalised(run.advantage, scores, prompts, histories.get(name))
        values += own if name == TOTAL else weights[name] * own
    values = advantages.clip_advantage(values, run.advantage.clip)
    groups = [
        TrainingGroup(rollout=group.rollout, advantages=row) for group, row in zip(whole, values.tolist(), strict=True)
    ]
    metrics = {
        "reward_mean": float(totals.mean()),
        "reward_std": float(totals.std(correction=0)),
        "group_deviation": float(totals.std(1, correction=0).mean()) if totals.shape[1] > 1 else None,
        "rewards": {name: float(np.mean([group.scores[name] for group in whole])) for name in weights},
        "advantage_abs_mean": float(values.abs().mean()),
        "degenerate_groups": advantages.degenerate_groups(totals),
        "rounding_groups": int(rounded.sum()),
        "dropped_groups": len(scored) - len(whole),
    }
    return TrainingBatch(groups=groups, metrics=metrics)


def _scores(scored: Sequence[Scored], weights: Mapping[str, float]) -> Float[Tensor, "P G"]:
    """Add up the rewards named in `weights`, weighted; a row a group, a column an image."""
    return torch.tensor(np.stack([group.total(weights) for group in scored]))


def rounding_warning(run: config.Run, batch: TrainingBatch) -> str:
    """Warn of groups whose scores differ by rounding only; empty where there is none."""
    count = batch.metrics["rounding_groups"]
    if not count:
        return ""
    alone = isinstance(run.advantage, config.GroupAdvantage) and run.advantage.scale == "group"
    return (
        f"the scores of {count} of {len(batch.groups)} groups differ by rounding only"
        + (", and their advantages are as large as any other group's" if alone else "")
        + "; rounding_groups in metrics.jsonl counts them. A reward that is computed in half precision, or that is the "
        "same for all images of a prompt, does that"
    )


def normalised(
    kind: config.Advantage,
    scores: Float[Tensor, "P G"],
    prompts: Sequence[str],
    history: History | None,
) -> Float[Tensor, "P G"]:
    """Compute advantages of the config's kind from scores, a row a group."""
    match kind:
        case config.GroupAdvantage():
            return advantages.group_relative(scores, scale=kind.scale, correction=kind.correction, epsilon=kind.epsilon)
        case config.BatchAdvantage():
            return advantages.batch_relative(scores, epsilon=kind.epsilon)
        case config.HistoryAdvantage() | config.CustomAdvantage():
            assert history is not None
            return history.normalise(prompts, scores)
        case _:
            assert_never(kind)


def score_columns(scored: Sequence[Scored], batch: TrainingBatch) -> dict[str, Sequence[Any]]:
    """Make the columns of scores.parquet: a row an image; the advantage is null for a group that was dropped."""
    known = {weighted.rollout.task: weighted.advantages for weighted in batch.groups}
    rows = [(group, sample) for group in scored for sample in range(group.rollout.task.images)]
    return {
        "step": [group.rollout.task.step for group, _ in rows],
        "prompt": [group.rollout.task.prompt.text for group, _ in rows],
        "sample": [sample for _, sample in rows],
        "version": [group.rollout.task.version for group, _ in rows],
        "worker": [group.rollout.worker for group, _ in rows],
        **{name: [group.scores[name][sample] for group, sample in rows] for name in scored[0].scores},
        "advantage": [
            known[group.rollout.task][sample] if group.rollout.task in known else None for group, sample in rows
        ],
    }


class BatchMaker:
    """Makes a run's training batches, and keeps the per-prompt statistics that their advantages need."""

    def __init__(self, run: config.Run, recorder: Recorder, say: Callable[[str], None]) -> None:
        self.run, self.recorder, self.say = run, recorder, say
        self.warned = False
        """True once the user was told that scores differ by rounding only."""
        self.reset()

    def reset(self) -> None:
        """Forget every batch."""
        self.histories = make_histories(self.run)
        self.before: Mapping[str, Any] = {}

    def make(self, scored: Sequence[Scored], step: int) -> TrainingBatch:
        """Turn scores into advantages, and record every sample. Raises RewardError when no group is left."""
        self.before = {name: history.state() for name, history in self.histories.items()}
        batch = training_batch(self.run, scored, self.histories, step)
        if not self.warned and (line := rounding_warning(self.run, batch)):
            self.warned = True
            self.recorder.event("rounding", step=step, message=line)
            self.say(line)
        self.recorder.samples("scores.parquet", step, score_columns(scored, batch))
        return batch

    def learned(self) -> None:
        """Note that the batch made last is learned."""
        self.before = {}

    def state(self) -> Mapping[str, Any]:
        """Give the statistics for a checkpoint, as they were before a batch that is not learned yet."""
        return self.before or {name: history.state() for name, history in self.histories.items()}

    def restore(self, states: Mapping[str, Any]) -> None:
        """Take up the statistics of a checkpoint."""
        for name, history in self.histories.items():
            history.restore(states[name])
