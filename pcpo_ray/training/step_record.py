"""The record of a training step, made of its batch, its update and the time that it took."""

from collections.abc import Mapping

import numpy as np

from pcpo_ray import config
from pcpo_ray.data.records import PoolStatus, StepRecord
from pcpo_ray.data.updates import Update
from pcpo_ray.training.batch import TrainingBatch
from pcpo_ray.training.counters import Counters
from pcpo_ray.training.dispatcher import Phases


def step_record(
    run: config.Run,
    batch: TrainingBatch,
    update: Update,
    *,
    seconds: float,
    phases: Phases,
    counters: Counters,
    pools: Mapping[str, PoolStatus],
) -> StepRecord:
    """Make the record of the step that `update` has ended; `counters` begin to count for the next one."""
    step = update.version
    images = run.rollout.prompts * run.rollout.images
    ages = [step - 1 - group.rollout.task.version for group in batch.groups]
    return StepRecord(
        step=step,
        **batch.metrics,
        version=step,
        sample_age=float(np.mean(ages)),
        oldest_sample=max(ages),
        first_log_ratio=update.first_log_ratio,
        loss=update.loss,
        kl=update.kl,
        learning_rate=update.learning_rate,
        gradient_norm=update.gradient_norm,
        skipped_gradients=update.skipped,
        update_ratio=update.update_ratio,
        moved_fraction=update.moved_fraction,
        importance=update.importance,
        mismatch=update.mismatch,
        **update.diagnostics["overall"],
        per_timestep=update.diagnostics["per_timestep"],
        seconds=seconds,
        samples_per_second=images / seconds,
        samples=step * images,
        phase_seconds=phases.wall,
        busy_seconds=phases.busy_in,
        lent_seconds=phases.lent or None,
        workers={role: pool.ready for role, pool in pools.items()},
        **counters.step(step - 1, pools["samplers"].workers),
        idle=idle_fractions(pools, phases.busy, seconds),
    )


def idle_fractions(pools: Mapping[str, PoolStatus], busy: Mapping[str, float], seconds: float) -> dict[str, float]:
    """Compute the fraction of its workers' time in which each role did not work.

    Samplers that are the learner's ranks, and no others, are as idle as the learner.
    """
    counts = {**{role: max(1, pool.ready) for role, pool in pools.items()}, "learner": 1}
    idle = {role: max(0.0, 1 - busy.get(role, 0.0) / (count * seconds)) for role, count in counts.items()}
    return idle if pools["samplers"].wanted else {**idle, "samplers": idle["learner"]}
