"""The driver's part of a core with a thousand samplers, on Ray. Their tasks take time and no processor."""

import asyncio
import contextlib
import dataclasses
import itertools
import time
from collections import deque
from collections.abc import Generator, Sequence
from typing import Any, cast

from pcpo_ray import config
from pcpo_ray.commands import session
from pcpo_ray.commands.bench.rows import Goal, Row, Say
from pcpo_ray.commands.bench.scheduler import ignore, task
from pcpo_ray.data.types import Handle, Rollout, Scored, Task
from pcpo_ray.data.updates import Published
from pcpo_ray.errors import BenchError
from pcpo_ray.training.dispatcher import Dispatcher
from pcpo_ray.training.scheduling.workers import Note
from pcpo_ray.training.stages import Stages

SAMPLERS, SCORERS = 1_000, 50
"""The numbers of workers. Each sampler holds two tasks, so that twice as many are in flight."""

SAMPLING, SCORING = 20.0, 0.1
"""The mean seconds that a sampler has a task, and that a scorer has one."""

SILENCE = 60.0

MEASURED = 15.0
"""The seconds of a repeat."""


class Host:
    """An actor that stands for all workers: each of its calls waits beside the others."""

    async def alive(self, seconds: float) -> tuple[int, str]:
        await asyncio.sleep(seconds)
        return 0, ""

    async def start(self) -> None:
        pass

    async def work(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class CrowdStages:
    """The part of the stages that the dispatcher uses, with Ray's own pools of the simulated workers."""

    def __init__(self, host: Any, samplers: int, sampling: float) -> None:
        from pcpo_ray.cluster.pool import WorkerPool
        from pcpo_ray.cluster.waiting import Waiter

        self.sampling = sampling
        self.waiter = Waiter()
        self.samplers: WorkerPool[Task, Rollout] = WorkerPool(
            "sampler", lambda name: host, self._sample, workers=samplers, silence=SILENCE
        )
        self.scorers: WorkerPool[Rollout, Scored] = WorkerPool(
            "scorer", lambda name: host, self._score, workers=SCORERS, silence=SILENCE
        )

    def _sample(self, host: Any, item: Task) -> tuple[Any, Any]:
        nothing = Handle(reference=None)
        rollout = Rollout(
            task=item, trajectory=nothing, images=nothing, bytes=1, checksum="", seconds=0.0, worker="sampler"
        )
        # spread from half the mean to three halves of it, so that answers come one by one
        seconds = self.sampling * (0.5 + item.position % 101 / 100)
        return host.work.remote(seconds), lambda value: rollout

    def _score(self, host: Any, item: Rollout) -> tuple[Any, Any]:
        scored = Scored(rollout=item, scores={"none": [0.0]}, failures={}, seconds=0.0)
        return host.work.remote(min(SCORING, self.sampling)), lambda value: scored

    def publish(self, *, oldest: int, averaged: bool = False) -> Published:
        return Published(version=0, averaged=averaged, checksum="", bytes=0, seconds=0.0)

    def wait(self, timeout: float) -> None:
        self.waiter.wait([*self.samplers.references(), *self.scorers.references()], timeout)

    def faults(self) -> list[str]:
        return [*self.samplers.faults(), *self.scorers.faults()]

    def notes(self) -> list[Note]:
        return []


@dataclasses.dataclass(frozen=True, kw_only=True)
class Use:
    """The driver's use for so many tasks: seconds of processor time and of wall-clock time."""

    processor: float
    wall: float
    tasks: int


def uses(run: config.Run, samplers: int, sampling: float, seconds: float) -> Generator[Use]:
    """Measure the driver for `seconds` at a time, with every sampler holding two tasks and as many waiting.

    Needs a Ray of this process. Begins when the samplers have started and as many tasks as were in flight are done.
    """
    import ray

    host = ray.remote(num_cpus=0, max_concurrency=10 * samplers + 10 * SCORERS)(Host).remote()
    dispatcher = Dispatcher(run, cast(Stages, CrowdStages(host, samplers, sampling)), event=ignore, say=ignore)
    dispatcher.publish(oldest=0)
    batch = max(1, samplers // 10)
    steps = itertools.count(1)
    ahead: deque[list[Task]] = deque()

    def submit() -> None:
        ahead.append([task(next(steps), position) for position in range(batch)])
        dispatcher.submit(ahead[-1])

    def turn() -> int:
        submit()
        return len(dispatcher.gather(ahead.popleft()))

    try:
        for _ in range(4 * samplers // batch):
            submit()
        for _ in range(2 * samplers // batch):
            turn()
        while True:
            processor, wall, tasks = time.process_time(), time.perf_counter(), 0
            while time.perf_counter() - wall < seconds:
                tasks += turn()
            yield Use(processor=time.process_time() - processor, wall=time.perf_counter() - wall, tasks=tasks)
    finally:
        ray.kill(host)


def measured_on(run: config.Run) -> config.Run:
    """Set the config's limits, the only part that counts, so that none is reached."""
    return dataclasses.replace(run, workers=dataclasses.replace(run.workers, task_timeout=600.0))


def measure(run: config.Run, repeats: int, say: Say) -> Sequence[Row]:
    """Measure the part of a core that the driver takes."""
    import ray

    if ray.is_initialized():
        raise BenchError("Ray goes on in this process already, with work of its own; measure in another process")
    say(f"{SAMPLERS:,} samplers, each with two tasks of {SAMPLING / 2:g} s")
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        measured = uses(run, SAMPLERS, SAMPLING, MEASURED)
        with session.frozen(), contextlib.closing(measured):  # frozen as the driver is
            found = list(itertools.islice(measured, repeats))
    finally:
        ray.shutdown()
    row = Row(
        name=f"driver, {SAMPLERS:,} samplers with {2 * SAMPLERS:,} tasks",
        unit="of a core",
        figures=tuple(use.processor / use.wall for use in found),
        goal=Goal(bound="at most", value=0.3, of="figure"),
        facts={
            "tasks a second": sum(use.tasks for use in found) / sum(use.wall for use in found),
            "that the samplers could do": SAMPLERS / (SAMPLING / 2),
            "scorers": SCORERS,
        },
    )
    return [row]
