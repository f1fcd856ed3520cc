"""Pool: which workers there are to be, and who gets the next item.

STARTING -> READY -> DRAINING -> gone. Events go in (`ready`, `finished`, `failed`, `died`, ...), actions come out
(`take`). Contract: every item submitted is finished exactly once, whatever dies, or an error says why it cannot be.
"""

import math
import statistics
from collections import deque
from typing import Generic

from pcpo_ray.errors import ClusterError
from pcpo_ray.training.scheduling.retries import Backoff
from pcpo_ray.training.scheduling.told import Told
from pcpo_ray.training.scheduling.workers import (
    Action,
    Cause,
    Entry,
    FreeWorkers,
    Item,
    Limits,
    Send,
    Start,
    Stop,
    Worker,
    WorkerState,
)

LOOK = 1.0
"""Seconds from one look at every worker to the next: among a thousand, each takes milliseconds."""


class Pool(Told, Generic[Item]):
    """A pool of workers. Its `name` begins their names, which are never used twice.

    Times are seconds on the driver's clock. `hint` says what may keep a worker of this kind silent, and what to do.
    """

    def __init__(self, name: str, limits: Limits, hint: str = "") -> None:
        super().__init__()
        self.name, self.limits, self.hint = name, limits, hint
        self.wanted = self._most = self._named = self._tickets = 0
        self.workers: dict[str, Worker] = {}
        self._vacant: deque[tuple[str, float]] = deque()
        """The workers lost and not replaced yet, and when they were lost."""
        self._entries: dict[int, Entry[Item]] = {}
        self._queue: deque[int] = deque()
        self._actions: list[Action[Item]] = []
        self._free = FreeWorkers(limits.depth)
        self._durations: deque[float] = deque(maxlen=64)
        self._backoff = Backoff()
        self._looked, self._late = -math.inf, math.inf

    # -- what there is --------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Count the items submitted and not finished."""
        return len(self._entries)

    def take(self) -> list[Action[Item]]:
        """Return the actions decided on since the last call, in their order."""
        actions, self._actions = self._actions, []
        return actions

    def cancel(self) -> None:
        """Forget every item; results that workers still send are not used."""
        self._entries.clear()
        self._queue.clear()

    # -- events ---------------------------------------------------------------------------------------------------

    def resize(self, wanted: int, now: float) -> None:
        """Have so many workers; surplus ones finish what they hold first."""
        self.wanted, self._most = wanted, max(self._most, wanted)
        self._fit(now)

    def submit(self, item: Item, now: float) -> int:
        """Queue an item; return the ticket under which it comes back."""
        self._tickets += 1
        self._entries[self._tickets] = Entry(item)
        self._queue.append(self._tickets)
        self._dispatch(now)
        return self._tickets

    def ready(self, worker: str, now: float) -> None:
        """Note that a worker has started."""
        found = self.workers.get(worker)
        if found is None:
            return
        found.heard = now
        if found.state is WorkerState.STARTING:
            found.state = WorkerState.READY
            self._free.put(worker, 0)
            if found.instead is not None:
                lost, since = found.instead
                self.noted.append(("recovered", f"{worker} in place of {lost} after {now - since:.0f} s"))
                found.instead = None
        self._dispatch(now)

    def lend(self, worker: str, now: float) -> None:
        """Note that another role lends a worker, which takes items until it is withdrawn."""
        found = self.workers.setdefault(worker, Worker(WorkerState.READY, heard=now, lent=True))
        found.state = WorkerState.READY
        self._free.put(worker, len(found.held))
        self._dispatch(now)

    def withdraw(self, worker: str) -> None:
        """Note that a lent worker takes no more items; it finishes what it holds."""
        found = self.workers.get(worker)
        if found is not None:
            self._free.remove(worker)
            found.state = WorkerState.DRAINING
            self._settle(worker, found)

    def heard(self, worker: str, now: float) -> bool:
        """Note a sign of life; return whether it was the worker's first, so that its process is there from now on."""
        found = self.workers.get(worker)
        if found is None:
            return False
        found.heard, first = now, found.placed is None
        if found.state is WorkerState.READY:
            self._free.put_back(worker, len(found.held))
        found.placed = now if first else found.placed
        return first

    def forgive(self, seconds: float) -> None:
        """Note that nobody listened for so long: that was no worker's silence."""
        for worker in self.workers.values():
            worker.heard += seconds

    def refused(self, worker: str, ticket: int) -> bool:
        """Note that a worker blames the item; return whether that is certain now, as other workers do too."""
        entry = self._entries.get(ticket)
        if entry is None:
            return False
        entry.refused.append(worker)
        return len(entry.refused) >= self.limits.refusals

    def finished(self, worker: str, ticket: int, now: float) -> bool:
        """Note a result; return False where it is not to be used, as another worker was first."""
        found, entry = self.workers.get(worker), self._entries.pop(ticket, None)
        if found is not None:
            since = self._release(worker, found, ticket, now)
            found.heard, found.strikes = now, 0
            if entry is not None and since is not None:
                self._durations.append(now - since)
            self._settle(worker, found)
        if entry is not None:
            self._backoff.succeeded()
            self._most = self.wanted
            for other in entry.holders - {worker}:
                self._settle_if_waiting(other)
        self._dispatch(now)
        return entry is not None

    def failed(self, worker: str, ticket: int, cause: str, now: float) -> None:
        """Note an error that may be the worker's fault. Raises ClusterError when the item was lost too often."""
        found = self.workers.get(worker)
        if found is not None:
            self._release(worker, found, ticket, now)
            found.heard = now
            found.strikes += 1
            if found.strikes >= self.limits.strikes and not found.lent:  # whose end is for its own role to decide on
                self.died(worker, f"failed {found.strikes} times in a row: {cause}", now, "failing")
                self._actions.append(Stop(worker))
            else:
                self._settle(worker, found)
        self._lost(worker, ticket, cause, "failing")
        self._dispatch(now)

    def died(self, worker: str, cause: str, now: float, why: Cause = "died") -> None:
        """Note that a worker is gone. Raises ClusterError when an item was lost, or workers died, too often."""
        found = self.workers.pop(worker, None)
        if found is None:
            return
        self._free.remove(worker)
        # what it was about to be given, by the death of another a moment ago, has never been with it
        unsent = {action.ticket for action in self._actions if isinstance(action, Send) and action.worker == worker}
        self._actions = [action for action in self._actions if getattr(action, "worker", None) != worker]
        if not found.lent:
            self.recovered.append(f"{worker} is gone: {cause}")
        if found.state is not WorkerState.DRAINING and not found.lent:
            self._vacant.append(found.instead or (worker, now))
            self.restarts[why] += 1
            self._backoff.failed(now)
            if self._backoff.failures > self.limits.deaths + self._most:
                raise ClusterError(
                    f"{self._backoff.failures} {self.name} workers died in a row and nothing was finished between; "
                    f"the last: {cause}"
                )
        for ticket in list(found.held):
            if ticket in unsent:
                self._take_back(worker, ticket)
            else:
                self._lost(worker, ticket, cause, why)
        self._fit(now)
        self._dispatch(now)

    def tick(self, now: float) -> None:
        """Act on the time, once in `LOOK` seconds: start who had to wait, give up the silent, hedge what takes long."""
        if now - self._looked < LOOK:
            return
        self._looked = now
        if len(self._durations) >= 5:
            self._late = self.limits.hedge * statistics.median(self._durations)
        for name, worker in list(self.workers.items()):
            placed = worker.placed if worker.state is WorkerState.STARTING else now
            if worker.lent or placed is None:  # its own role listens for a worker that is lent
                continue
            cause, late, silent = "", now - placed, now - worker.heard
            if silent > self.limits.silence / 2:  # so that an item does not go round among those that hang
                self._free.remove(name)
            if silent > self.limits.silence:
                limit = f"workers.silence_timeout={self.limits.silence:g}"
                cause = f"it was silent for {silent:.0f} s ({limit}){self.hint}"
            elif late > self.limits.start:
                cause = f"it had not started after {late:.0f} s (workers.start_timeout={self.limits.start:g})"
            if cause:
                self.died(name, cause, now, "silent")
                self._actions.append(Stop(name))
        self._fit(now)
        self._dispatch(now)
        self._hedge(now)

    # -- decisions ------------------------------------------------------------------------------------------------

    def _fit(self, now: float) -> None:
        """Start missing workers; drain surplus ones, first those still starting, then those that hold least."""
        there = [name for name, one in self.workers.items() if not one.lent and one.state is not WorkerState.DRAINING]
        if len(there) < self.wanted and now >= self._backoff.until:
            for _ in range(self.wanted - len(there)):
                name = f"{self.name}-{self._named}"
                self._named += 1
                instead = self._vacant.popleft() if self._vacant else None
                self.workers[name] = Worker(WorkerState.STARTING, heard=now, instead=instead)
                self._actions.append(Start(name))
        leaving = sorted(
            there, key=lambda name: (self.workers[name].state is WorkerState.READY, len(self.workers[name].held))
        )
        for name in leaving[: max(0, len(there) - self.wanted)]:
            worker = self.workers[name]
            self._free.remove(name)
            worker.state = WorkerState.DRAINING
            self._settle(name, worker)
        if len(there) >= self.wanted:
            self._vacant.clear()  # fewer are wanted now: nobody comes in their place

    def drain(self, worker: str, now: float) -> None:
        """Have a worker leave, as its node was told to: it finishes what it holds, and another is started at once."""
        found = self.workers.get(worker)
        if found is None or found.state is WorkerState.DRAINING:
            return
        self._free.remove(worker)
        found.state = WorkerState.DRAINING
        self.recovered.append(f"{worker} is leaving: its node is being drained")
        self.restarts["drained"] += 1
        self._vacant.append((worker, now))
        self._settle(worker, found)
        self._fit(now)

    def _dispatch(self, now: float) -> None:
        passed: list[int] = []  # refused by all who are free; the others need not wait behind it
        while self._queue and self._free.least_busy(()) is not None:
            ticket = self._queue.popleft()
            entry = self._entries.get(ticket)
            if entry is None:  # finished by a hedge meanwhile
                continue
            worker = self._free.least_busy(entry.holders | self._refusers(entry, now))
            if worker is None:
                passed.append(ticket)
            else:
                self._send(worker, ticket, entry, now)
        self._queue.extendleft(reversed(passed))

    def _refusers(self, entry: Entry[Item], now: float) -> set[str]:
        """List the workers that refused an item; they get it again only where there is nobody else who gets on."""
        if not entry.refused:
            return set()
        ready = {name: found for name, found in self.workers.items() if found.state is WorkerState.READY}
        there = {name for name, found in ready.items() if found.at_work(now) <= self._late}
        return set() if there <= set(entry.refused) else set(entry.refused)

    def _send(self, worker: str, ticket: int, entry: Entry[Item], now: float) -> None:
        found = self.workers[worker]
        found.held[ticket] = now
        self._free.put(worker, len(found.held))
        entry.holders.add(worker)
        self._actions.append(Send(worker, ticket, entry.item))

    def _release(self, worker: str, found: Worker, ticket: int, now: float) -> float | None:
        """Take an item from a worker, which then begins its next; return since when it was at work on it."""
        since = found.held.pop(ticket, None)
        if since is None:
            return None
        if found.held:
            found.held[next(iter(found.held))] = now
        if found.state is WorkerState.READY:
            self._free.put(worker, len(found.held))
        return since

    def _settle(self, worker: str, found: Worker) -> None:
        """Let a worker go that has finished what it held before leaving."""
        if found.state is WorkerState.DRAINING and not found.held:
            del self.workers[worker]
            if not found.lent:
                self._actions.append(Stop(worker))

    def _settle_if_waiting(self, worker: str) -> None:
        """Let a leaving worker go whose last items were finished elsewhere."""
        found = self.workers.get(worker)
        if found is None or any(ticket in self._entries for ticket in found.held):
            return
        if found.state is WorkerState.DRAINING:
            found.held.clear()
            self._settle(worker, found)

    def _lost(self, worker: str, ticket: int, cause: str, why: Cause) -> None:
        entry = self._entries.get(ticket)
        if entry is None:
            return
        entry.lost.append(f"{worker}: {cause}")
        self.retries["lost"][why] += 1
        if self._take_back(worker, ticket):
            if len(entry.lost) >= self.limits.attempts:
                raise ClusterError(f"a task was lost {len(entry.lost)} times: " + "; ".join(entry.lost))
            self.recovered.append(f"{worker} lost a task ({cause}), attempt {len(entry.lost)}")

    def _take_back(self, worker: str, ticket: int) -> bool:
        """Queue an item first that a worker does not have any more; return False where a hedge is still at it."""
        entry = self._entries.get(ticket)
        if entry is None:
            return False
        entry.holders.discard(worker)
        if not entry.holders:
            self._queue.appendleft(ticket)
        return not entry.holders

    def _hedge(self, now: float) -> None:
        for name, found in list(self.workers.items()):
            if (taken := found.at_work(now)) <= self._late:
                continue
            for ticket in list(found.held):
                entry = self._entries.get(ticket)
                if entry is None or len(entry.holders) > 1:
                    continue
                if (other := self._free.least_busy(entry.holders, idle=True)) is None:
                    continue
                self.noted.append(("note", f"{name} takes long over a task ({taken:.1f} s); {other} is asked too"))
                self.retries["hedged"]["slow"] += 1
                self._send(other, ticket, entry, now)
