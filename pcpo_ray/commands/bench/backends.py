"""Ray against one process: the same steps with one sampler, one scorer and one learner, run synchronously."""

import dataclasses
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from pcpo_ray import config
from pcpo_ray.commands import session
from pcpo_ray.commands.bench import work
from pcpo_ray.commands.bench.rows import Goal, Row, Say, alternate
from pcpo_ray.commands.bench.waiting import DEADLINE, answers
from pcpo_ray.training.batch import make_histories, training_batch
from pcpo_ray.training.dispatcher import Dispatcher
from pcpo_ray.training.stages import Stages
from pcpo_ray.workers import memory

if TYPE_CHECKING:
    from pcpo_ray.cluster.stages import RayStages


def measured_on(run: config.Run) -> config.Run:
    """Change the config to one worker per role, synchronous."""
    workers = run.workers
    return dataclasses.replace(
        run,
        rollout=dataclasses.replace(run.rollout, max_staleness=0),
        workers=dataclasses.replace(
            workers,
            samplers=work.counted(workers.samplers, 1),
            scorers=work.counted(workers.scorers, 1),
            learner=dataclasses.replace(workers.learner, ranks=1, samples=False),
            start_timeout=DEADLINE,
            task_timeout=DEADLINE,
        ),
    )


class Steps:
    """A run's steps made by hand on either backend, as the loop makes them, with nothing recorded."""

    def __init__(self, run: config.Run, stages: Stages) -> None:
        self.run, self.stages, self.step = run, stages, 0
        self.dispatcher = Dispatcher(run, stages, event=lambda kind, **details: None, say=lambda line: None)
        self.histories = make_histories(run)

    def __call__(self) -> float:
        """Make the next step and return its seconds."""
        started = time.perf_counter()
        self.dispatcher.publish(oldest=self.step)
        tasks = work.tasks(self.run, self.step + 1, self.step)
        self.dispatcher.submit(tasks)
        batch = training_batch(self.run, self.dispatcher.gather(tasks), self.histories, self.step + 1)
        self.step = self.dispatcher.learn(self.step + 1, batch.groups).version
        return time.perf_counter() - started


def measure(run: config.Run, repeats: int, say: Say) -> Sequence[Row]:
    """Measure one step on each backend per repeat."""
    here = session.stages(run, local=True, say=say)
    there = cast("RayStages", session.stages(run, local=False, say=say))
    try:
        figures, limits = alternate(Steps(run, there), Steps(run, here), repeats, say)
        peaks = _peaks(there)
    finally:
        there.close()
    row = Row(
        name="Ray against in-process",
        unit="s a step",
        figures=figures,
        limits=limits,
        limit="the same steps in this process",
        goal=Goal(bound="at most", value=1.1),
        facts={"images a step": run.rollout.prompts * run.rollout.images},
    )
    peaks["driver, with the stages of one process"] = memory.peak()
    return [row, *(_peak(role, peak) for role, peak in peaks.items())]


def _peaks(stages: "RayStages") -> dict[str, memory.Peak]:
    actors: dict[str, Any] = {**stages.samplers.members(), **stages.scorers.members()}
    actors |= {f"learner-{index}": actor for index, actor in enumerate(stages.learner.actors)}
    found = answers([actor.peak.remote() for actor in actors.values()], "the workers' peak memory")
    return dict(zip(actors, found, strict=True))


def _peak(role: str, peak: memory.Peak) -> Row:
    return Row(
        name=f"peak memory, {role}",
        unit="MiB",
        figures=(peak.resident / 2**20,),
        facts={"of a GPU's besides, MiB": peak.gpu / 2**20} if peak.gpu else {},
    )
