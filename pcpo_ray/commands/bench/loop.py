"""The loop with one batch ahead, on simulated work: seconds per step against the slowest role working alone."""

import time
from collections.abc import Sequence

from pcpo_ray import config
from pcpo_ray.commands.bench import simulated, work
from pcpo_ray.commands.bench.rows import Goal, Row, Say, alternate, spread
from pcpo_ray.commands.bench.waiting import collected, until
from pcpo_ray.training.batch import training_batch
from pcpo_ray.training.loop import Loop

STEPS = 4
"""Steps per repeat. The first fills the pipeline and the last samples nothing, so the others are measured."""

PROMPTS = 8


def measured_on(run: config.Run) -> config.Run:
    """Replace the config by simulated work: sampling and learning take 2 s per step, scoring 0.4 s."""
    return simulated.run(simulated.Sleeping, samplers=1, prompts=PROMPTS, scoring=0.05)


def measure(run: config.Run, repeats: int, say: Say) -> Sequence[Row]:
    """Measure `STEPS` steps of the loop, and one batch with each role working alone, per repeat."""
    seen: dict[str, list[float]] = {}
    with simulated.looped(run, say) as loop:

        def step() -> float:
            between = simulated.steps(loop, STEPS, staleness=1, prompts=PROMPTS)[1:-1]
            return sum(between) / len(between)

        def slowest() -> float:
            spent = alone(loop)
            for role, seconds in spent.items():
                seen.setdefault(role, []).append(seconds)
            return max(spent.values())

        figures, limits = alternate(step, slowest, repeats, say)
    row = Row(
        name="loop, a batch ahead",
        unit="s a step",
        figures=figures,
        limits=limits,
        limit="the slowest role alone, on the same simulated work",
        goal=Goal(bound="at most", value=1.05),
        facts={f"{role} alone, s": spread(seconds).median for role, seconds in seen.items()},
    )
    return [row]


def alone(loop: Loop) -> dict[str, float]:
    """Make the loop's next step by hand, one role after the other, and return the seconds of each."""
    stages, progress = loop.stages, loop.progress
    step = progress.step + 1
    loop.dispatcher.publish(oldest=progress.step)
    asked = work.tasks(loop.run, step, progress.step)
    spent: dict[str, float] = {}

    started = time.perf_counter()
    for task in asked:
        stages.samplers.submit(task)
    rollouts = collected(stages, stages.samplers.collect, len(asked), "samplers")
    spent["samplers"] = time.perf_counter() - started

    started = time.perf_counter()
    for rollout in rollouts:
        stages.scorers.submit(rollout)
    scored = collected(stages, stages.scorers.collect, len(asked), "scorers")
    spent["scorers"] = time.perf_counter() - started

    scored.sort(key=lambda group: group.rollout.task.position)
    batch = training_batch(loop.run, scored, {}, step)
    started = time.perf_counter()
    stages.learner.begin(step, batch.groups)
    update = until(stages, stages.learner.collect, "the learner")
    spent["learner"] = time.perf_counter() - started
    progress.step = update.version
    return spent
