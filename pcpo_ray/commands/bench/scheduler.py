"""The scheduler: the cost of the driver's own work per task, with few and many in flight. Nothing is sampled."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Generic, TypeVar, assert_never, cast

from pcpo_ray import config
from pcpo_ray.commands import session
from pcpo_ray.commands.bench.rows import Goal, Row, Say, alternate
from pcpo_ray.data.types import Handle, Prompt, Rollout, Scored, Task
from pcpo_ray.data.updates import Published
from pcpo_ray.training.dispatcher import Dispatcher
from pcpo_ray.training.scheduling.pool import Pool
from pcpo_ray.training.scheduling.workers import Limits, Note, Send, Start, Stop
from pcpo_ray.training.stages import Stages

Item = TypeVar("Item")
Result = TypeVar("Result")

FEWEST = 10
IN_FLIGHT = (100, 1_000, 10_000)
TASKS = 10_000
"""Tasks per measurement, however many of them are in flight at once."""

WORKERS = 4
"""The number of workers. They hold 8 tasks, fewer than are ever in flight, so some always queue."""


class InstantPool(Generic[Item, Result]):
    """A role's pool with instant workers: the decisions of Ray's pool without Ray."""

    def __init__(self, name: str, finish: Callable[[Item, str], Result]) -> None:
        # no hedges: among instant tasks, any that a pause of the machine delays would seem late
        self.pool: Pool[Item] = Pool(name, Limits(hedge=math.inf))
        self.finish = finish
        self.held: list[Send[Item]] = []
        self.done: list[Result] = []
        self.pool.resize(WORKERS, time.monotonic())
        self._perform()

    def submit(self, item: Item) -> None:
        self.pool.submit(item, time.monotonic())
        self._perform()

    def collect(self) -> list[Result]:
        self.pool.tick(time.monotonic())
        self._perform()
        finished, self.done = self.done, []
        return finished

    def lost(self) -> list[Item]:
        return []

    def work(self) -> bool:
        """Let one worker finish an item; False if none holds any."""
        if not self.held:
            return False
        send = self.held.pop(0)
        if self.pool.finished(send.worker, send.ticket, time.monotonic()):
            self.done.append(self.finish(send.item, send.worker))
        self._perform()
        return True

    def _perform(self) -> None:
        for action in self.pool.take():
            match action:
                case Start(worker):
                    self.pool.ready(worker, time.monotonic())
                case Send():
                    self.held.append(action)
                case Stop():
                    pass  # the workers live as long as the benchmark
                case _:
                    assert_never(action)


class InstantStages:
    """The part of the stages that the dispatcher uses."""

    def __init__(self) -> None:
        self.samplers: InstantPool[Task, Rollout] = InstantPool("sampler", _sampled)
        self.scorers: InstantPool[Rollout, Scored] = InstantPool("scorer", _scored)

    def publish(self, *, oldest: int, averaged: bool = False) -> Published:
        return Published(version=0, averaged=averaged, checksum="", bytes=0, seconds=0.0)

    def wait(self, timeout: float) -> None:
        _ = self.scorers.work() or self.samplers.work()

    def faults(self) -> list[str]:
        return []

    def notes(self) -> list[Note]:
        return []


def _sampled(task: Task, worker: str) -> Rollout:
    nothing = Handle(reference=None)
    return Rollout(task=task, trajectory=nothing, images=nothing, bytes=1, checksum="", seconds=0.0, worker=worker)


def _scored(rollout: Rollout, worker: str) -> Scored:
    return Scored(rollout=rollout, scores={"none": [0.0]}, failures={}, seconds=0.0)


def cost(run: config.Run, in_flight: int, tasks: int = TASKS) -> float:
    """Measure microseconds of processor time per task, from submission to gathering, in batches of `in_flight`."""
    stages = cast(Stages, InstantStages())
    dispatcher = Dispatcher(run, stages, event=ignore, say=ignore)
    dispatcher.publish(oldest=0)
    batches = [
        [task(step, position) for position in range(in_flight)] for step in range(1, 1 + max(1, tasks // in_flight))
    ]
    started = time.process_time()
    for batch in batches:
        dispatcher.submit(batch)
        dispatcher.gather(batch)
    return 1e6 * (time.process_time() - started) / (len(batches) * in_flight)


def task(step: int, position: int) -> Task:
    """Make a task of nothing."""
    return Task(
        step=step, position=position, prompt=Prompt(index=position, text=""), images=1, version=0, purpose="train"
    )


def ignore(*arguments: Any, **details: Any) -> None:
    """Take an event or a line, and keep nothing of it."""


def measured_on(run: config.Run) -> config.Run:
    """Set the config's limits, the only part that counts, so that none is reached."""
    return dataclasses.replace(run, workers=dataclasses.replace(run.workers, task_timeout=600.0))


def measure(run: config.Run, repeats: int, say: Say) -> Sequence[Row]:
    """Measure `TASKS` tasks with so many in flight, and as many with the fewest, per repeat."""
    rows = []
    for in_flight in IN_FLIGHT:
        say(f"{in_flight} in flight")
        with session.frozen():  # as in the driver
            figures, limits = alternate(partial(cost, run, in_flight), partial(cost, run, FEWEST), repeats, say)
        rows.append(
            Row(
                name=f"scheduler, {in_flight:,} in flight",
                unit="us a task",
                figures=figures,
                limits=limits,
                limit=f"the same with {FEWEST} in flight",
                goal=Goal(bound="at most", value=1.1),
            )
        )
    return rows
