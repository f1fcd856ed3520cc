"""WorkerPool: independent actors that do one kind of task, least busy first.

Contract: every item submitted is collected exactly once. A worker that dies takes no item with it: what it held goes to
whoever is least busy, until an item has been lost `ATTEMPTS` times; the worker gets none until it answers again. An
error of the work itself is not the cluster's: it is raised at once.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray
from ray import exceptions

from pcpo_ray.errors import ClusterError, PcpoError

Item = TypeVar("Item")
Result = TypeVar("Result")

ATTEMPTS = 3
DEPTH = 2
"""Items a worker holds: one at work and one that is there when it is done."""

CLUSTER_FAULTS = (exceptions.ActorDiedError, exceptions.ActorUnavailableError, exceptions.WorkerCrashedError)


@dataclass(frozen=True, kw_only=True)
class Running(Generic[Item, Result]):
    """An item with a worker."""

    item: Item
    attempt: int
    worker: int
    finish: Callable[[Any], Result]


class WorkerPool(Generic[Item, Result]):
    """`start(actor, item)` gives the reference to wait for, and what makes a result of its value."""

    def __init__(
        self,
        name: str,
        workers: list[Any],
        start: Callable[[Any, Item], tuple[ray.ObjectRef, Callable[[Any], Result]]],
    ) -> None:
        self.name = name
        self.workers = workers
        self.start = start
        self.queue: deque[tuple[Item, int]] = deque()
        self.running: dict[ray.ObjectRef, Running[Item, Result]] = {}
        self.away: dict[ray.ObjectRef, int] = {}
        self.mended: list[str] = []

    def submit(self, item: Item) -> None:
        self.queue.append((item, 1))
        self._dispatch()

    def references(self) -> list[ray.ObjectRef]:
        """What to wait for."""
        return [*self.running, *self.away]

    def collect(self) -> list[Result]:
        """Results since the last call. Raises the work's own error, or ClusterError after `ATTEMPTS` lost workers."""
        waited = self.references()
        if not waited:
            return []
        done, _ = ray.wait(waited, num_returns=len(waited), timeout=0)
        results = []
        for reference in done:
            if reference in self.away:
                self._back(reference)
                continue
            running = self.running.pop(reference)
            try:
                results.append(running.finish(ray.get(reference)))
            except CLUSTER_FAULTS as error:
                self._again(running, error)
            except exceptions.RayError as error:
                raise reraise(error, f"a {self.name}") from error
        self._dispatch()
        return results

    def faults(self) -> list[str]:
        """What was mended since the last call."""
        mended, self.mended = self.mended, []
        return mended

    def _again(self, running: Running[Item, Result], error: Exception) -> None:
        line = f"{self.name}-{running.worker} lost a task ({type(error).__name__}), attempt {running.attempt}"
        if running.attempt == ATTEMPTS:
            raise ClusterError(f"{line}: it was lost {ATTEMPTS} times, the last time by: {error}") from error
        self.mended.append(line)
        self.queue.appendleft((running.item, running.attempt + 1))
        if running.worker not in self.away.values():
            # a call to a restarting actor would fail at once; this one alone is queued until it is there again
            ping = self.workers[running.worker].ready.options(max_task_retries=-1).remote()
            self.away[ping] = running.worker

    def _back(self, ping: ray.ObjectRef) -> None:
        worker = self.away.pop(ping)
        try:
            ray.get(ping)
        except exceptions.RayError as error:
            raise reraise(error, f"{self.name}-{worker} to restart") from error
        self.mended.append(f"{self.name}-{worker} is back")

    def _dispatch(self) -> None:
        held = [0] * len(self.workers)
        for running in self.running.values():
            held[running.worker] += 1
        for worker in self.away.values():
            held[worker] = DEPTH
        while self.queue and min(held) < DEPTH:
            worker = held.index(min(held))
            item, attempt = self.queue.popleft()
            reference, finish = self.start(self.workers[worker], item)
            self.running[reference] = Running(item=item, attempt=attempt, worker=worker, finish=finish)
            held[worker] += 1


def reraise(error: Exception, awaited: str) -> PcpoError:
    """The error as one of this package's: the worker's own where it raised one, else what Ray says of the cluster."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, PcpoError):
        return cause
    return ClusterError(f"while waiting for {awaited}: {error}")
