"""WorkerPool: the actors behind a `scheduling.pool.Pool`, whose decisions it carries out.

Contract: every item submitted is collected once, or is among `lost`, or an error says why not. An error of the work
itself is tried on another worker; one that says what is wrong with the item (this package's own errors) is raised when
a second worker, or the only one once more, says so too.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, assert_never

import ray
from ray import exceptions

from pcpo_ray.cluster.failures import DEAF, WeightsGoneError, brief, cause_of, is_gone
from pcpo_ray.cluster.launch import BEAT, end
from pcpo_ray.data.records import PoolStatus
from pcpo_ray.errors import ClusterError
from pcpo_ray.training.scheduling.pool import Pool
from pcpo_ray.training.scheduling.retries import Blame, blame
from pcpo_ray.training.scheduling.workers import Limits, Note, Send, Start, Stop, WorkerState

Item = TypeVar("Item")
Result = TypeVar("Result")

BEATS = 50.0
"""Signs of life a second that a pool asks for at most: a thousand workers at their usual pace would keep it busy."""

Sends = Callable[[Any, Item], tuple[ray.ObjectRef, Callable[[Any], Result]]]
"""A function of an actor and an item. It returns the reference to wait for, and a function that makes the result."""


@dataclass(frozen=True, kw_only=True)
class Call(Generic[Item, Result]):
    """An item with a worker."""

    worker: str
    ticket: int
    item: Item
    finish: Callable[[Any], Result]


class WorkerPool(Generic[Item, Result]):
    """A pool of actors. `launch(name)` makes one, which is told to start when it has a place; `send` has it work.

    `first` are the arguments of `start` until a worker has started. None is made while the cluster's head does not
    answer, as `answers` or a ClusterError of `launch` tells: the driver would wait with it, and hear of nothing.
    """

    def __init__(
        self,
        name: str,
        launch: Callable[[str], Any],
        send: Sends[Item, Result],
        *,
        workers: int,
        silence: float,
        start: float = 300.0,
        hint: str = "",
        first: Sequence[Any] = (),
        answers: Callable[[], bool] = lambda: True,
    ) -> None:
        self.name, self.launch, self.send, self.first, self.answers = name, launch, send, first, answers
        self.pool: Pool[Item] = Pool(name, Limits(silence=silence, start=start), hint)
        self.unmade: list[str] = []
        """The workers that have no actor yet."""
        self.actors: dict[str, Any] = {}
        self.borrowed: set[str] = set()
        """The actors of another role: their end is that role's to decide on."""
        self.nodes: dict[str, str] = {}
        self.calls: dict[ray.ObjectRef, Call[Item, Result]] = {}
        self.unsure: list[tuple[float, Call[Item, Result]]] = []
        """Calls of lent actors that were out of reach, and when to make them again."""
        self.beats: dict[ray.ObjectRef, str] = {}
        self.starts: dict[ray.ObjectRef, str] = {}
        self.proven = False
        """True once a worker has started."""
        self.listened = time.monotonic()
        self.gone: list[Item] = []
        self.room = ""
        """The room that there is, while some workers wait for a place."""
        self.resize(workers)

    # -- what the stages use --------------------------------------------------------------------------------------

    def submit(self, item: Item) -> None:
        self.pool.submit(item, time.monotonic())
        self._perform()

    def collect(self) -> list[Result]:
        """Return the results since the last call."""
        now = time.monotonic()
        if now - self.listened > DEAF:
            self.pool.forgive(now - self.listened)
        self.listened = now
        results = []
        for reference in self._done():
            if reference in self.beats:
                self._beat(reference, now)
            elif reference in self.starts:
                self._started(reference, now)
            elif reference in self.calls:  # a call of a worker found dead a moment ago is no call any more
                results += self._result(reference, now)
        for at, call in list(self.unsure):
            if now >= at:
                self.unsure.remove((at, call))
                self._send(call.worker, call.ticket, call.item)
        self.pool.tick(now)
        self._perform()
        return results

    def lost(self) -> list[Item]:
        """Return the items, since the last call, that cannot be done any more because their data is gone."""
        gone, self.gone = self.gone, []
        return gone

    def cancel(self) -> None:
        """Forget every item."""
        self.pool.cancel()
        self.gone.clear()

    def resize(self, workers: int) -> None:
        self.pool.resize(workers, time.monotonic())
        self._perform()

    def lend(self, actors: Mapping[str, Any]) -> None:
        """Send items to actors of another role too, until they are withdrawn."""
        self.actors.update(actors)
        self.borrowed.update(actors)
        for worker in actors:
            self.pool.lend(worker, time.monotonic())
        self._perform()

    def withdraw(self) -> None:
        """Send nothing more to lent actors. They finish what they hold, and its results are collected."""
        for worker in self.borrowed:
            self.pool.withdraw(worker)

    def dismiss(self) -> None:
        """Forget lent actors that are about to end; what they hold is for others to do."""
        for worker in self.borrowed:
            self._forget(worker)
            self.pool.died(worker, "its learner was lost", time.monotonic())
        self.borrowed.clear()

    @property
    def own(self) -> int:
        """Count the pool's own workers, also those without a place."""
        return len(self.pool.workers.keys() - self.borrowed)

    @contextlib.contextmanager
    def only_started(self) -> Iterator[None]:
        """Inside, workers that have not started give up their places, unless another size is asked for meanwhile."""
        wanted, there = self.pool.wanted, self.pool.workers.items()
        started = sum(name not in self.borrowed and one.state is WorkerState.READY for name, one in there)
        fewer = min(wanted, started)
        self.resize(fewer)
        try:
            yield
        finally:
            if self.pool.wanted == fewer:
                self.resize(wanted)

    def status(self) -> PoolStatus:
        """Return how many workers there are, how many there should be, and what was restarted and retried."""
        pool, there = self.pool, self.pool.workers.values()
        ready = tuple(name for name, worker in pool.workers.items() if worker.state is WorkerState.READY)
        lent = len(self.borrowed.intersection(ready))
        retries = {outcome: dict(causes) for outcome, causes in pool.retries.items()}
        return PoolStatus(
            wanted=pool.wanted,
            ready=len(ready) - lent,
            lent=lent,
            workers=ready,
            unplaced=sum(worker.state is WorkerState.STARTING and worker.placed is None for worker in there),
            room=self.room,
            restarts=dict(pool.restarts),
            retries=retries,
        )

    def members(self) -> dict[str, Any]:
        """Return the pool's own actors that have started, by name."""
        started = [name for name, worker in self.pool.workers.items() if worker.state is not WorkerState.STARTING]
        return {name: self.actors[name] for name in started if name not in self.borrowed}

    def references(self) -> list[ray.ObjectRef]:
        """Return the references to wait for."""
        return [*self.calls, *self.beats, *self.starts]

    def faults(self) -> list[str]:
        return self.pool.faults()

    def notes(self) -> list[Note]:
        return self.pool.notes()

    def drain_nodes(self, nodes: set[str]) -> None:
        """Let the workers on nodes that are about to leave finish, and start others."""
        for worker, node in list(self.nodes.items()):
            if node in nodes:
                self.pool.drain(worker, time.monotonic())
        self._perform()

    def close(self) -> None:
        self.unmade.clear()
        end(list(self.actors.values()))
        self.actors.clear()
        self.calls.clear()
        self.beats.clear()
        self.starts.clear()

    # -- events -----------------------------------------------------------------------------------------------------

    def _done(self) -> list[ray.ObjectRef]:
        waited = self.references()
        if not waited:
            return []
        done, _ = ray.wait(waited, num_returns=len(waited), timeout=0)
        return list(done)

    def _beat(self, reference: ray.ObjectRef, now: float) -> None:
        worker = self.beats.pop(reference)
        try:
            _, self.nodes[worker] = ray.get(reference)
        except exceptions.ActorUnavailableError:
            pass  # out of reach for a moment; for how long is what silence counts
        except exceptions.RayError as error:
            self._died(worker, brief(cause_of(error)), now)
            return
        else:
            if self.pool.heard(worker, now):  # its process is there
                self._start(worker)
        self.beats[self.actors[worker].alive.remote(self._pace())] = worker

    def _pace(self) -> float:
        """Return the seconds from one sign of life to the next: longer in a large pool, and short of its silence."""
        return min(max(BEAT, len(self.actors) / BEATS), self.pool.limits.silence / 4)

    def _start(self, worker: str) -> None:
        # what fails for a moment ends no run that goes on: those who come later have nothing to prove
        self.starts[self.actors[worker].start.remote(*(() if self.proven else self.first))] = worker

    def _started(self, reference: ray.ObjectRef, now: float) -> None:
        worker = self.starts.pop(reference)
        try:
            ray.get(reference)
        except exceptions.ActorUnavailableError:
            self._start(worker)
        except exceptions.RayError as error:
            cause = cause_of(error)
            if blame(cause) is Blame.DATA and not self.proven:  # another one could not start either
                raise cause from error
            self._died(worker, brief(cause), now)
        else:
            self.proven = True
            self.pool.ready(worker, now)

    def _result(self, reference: ray.ObjectRef, now: float) -> list[Result]:
        call = self.calls.pop(reference)
        try:
            value = ray.get(reference)
        except exceptions.RayError as error:
            cause = cause_of(error)
            unsure = isinstance(cause, exceptions.ActorUnavailableError)
            if unsure and call.worker in self.borrowed:  # it may have the item or not: a pure function, so once more
                self.unsure.append((now + BEAT, call))
            elif unsure or is_gone(cause):  # another worker is cheaper than to find out
                self._died(call.worker, brief(cause), now)
            elif isinstance(cause, exceptions.ObjectLostError | WeightsGoneError):
                if self.pool.finished(call.worker, call.ticket, now):
                    self._gone(call.item, cause)
            else:
                if blame(cause) is Blame.DATA and self.pool.refused(call.worker, call.ticket):
                    raise cause from error
                self.pool.failed(call.worker, call.ticket, brief(cause), now)
        else:
            if self.pool.finished(call.worker, call.ticket, now):
                return [call.finish(value)]
        return []

    def _gone(self, item: Item, cause: Exception) -> None:
        """Note that an item cannot be done, as its data is gone."""
        self.gone.append(item)

    def _died(self, worker: str, cause: str, now: float) -> None:
        """Forget a worker that is gone, and end it in case it only seems so: it would keep what it has reserved."""
        end([self._forget(worker)])
        self.pool.died(worker, cause, now)

    def _forget(self, worker: str) -> Any:
        self.nodes.pop(worker, None)
        self.calls = {reference: call for reference, call in self.calls.items() if call.worker != worker}
        self.unsure = [(at, call) for at, call in self.unsure if call.worker != worker]
        self.beats = {reference: name for reference, name in self.beats.items() if name != worker}
        self.starts = {reference: name for reference, name in self.starts.items() if name != worker}
        return self.actors.pop(worker, None)

    # -- actions ----------------------------------------------------------------------------------------------------

    def _perform(self) -> None:
        for action in self.pool.take():
            match action:
                case Start(worker):
                    self.unmade.append(worker)
                case Stop(worker):
                    self.unmade = [name for name in self.unmade if name != worker]
                    actor = self._forget(worker)
                    if actor is not None:
                        end([actor])
                case Send(worker, ticket, item):
                    self._send(worker, ticket, item)
                case _:
                    assert_never(action)
        self._make()

    def _send(self, worker: str, ticket: int, item: Item) -> None:
        reference, finish = self.send(self.actors[worker], item)
        self.calls[reference] = Call(worker=worker, ticket=ticket, item=item, finish=finish)

    def _make(self) -> None:
        while self.unmade and self.answers():
            try:
                actor = self.launch(self.unmade[0])
            except ClusterError:  # the run has its own patience with the head
                return
            worker = self.unmade.pop(0)
            self.actors[worker] = actor
            self.beats[actor.alive.remote(0.0)] = worker
