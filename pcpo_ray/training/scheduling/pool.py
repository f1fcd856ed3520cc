"""Pool: which workers there are to be, and who gets the next item.

STARTING -> READY -> DRAINING -> gone. Events go in (`ready`, `finished`, `failed`, `died`, ...), actions come out
(`take`). Contract: every item submitted is finished exactly once, whatever dies, or an error says why it cannot be.
"""

import enum
import statistics
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from pcpo_ray.errors import ClusterError
from pcpo_ray.training.scheduling.retries import Backoff

Item = TypeVar("Item")


class WorkerState(enum.Enum):
    """Of a worker: being started, at work, or finishing what it holds before it goes."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


Loss = Literal["died", "silent", "failing", "drained"]
"""Why a worker had to be replaced."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """When to stop hoping.

    `depth` is how many items a worker holds: one at work and one that is there when it is done. An item may be lost
    `attempts` times, a worker fail `strikes` times in a row before it is replaced, and `deaths` workers die in a row
    with nothing finished in between. An item that `refusals` workers found fault with is at fault. A worker that was
    not heard of for `silence` seconds is given up, and one that has not started `start` seconds after it had a place;
    for a place it may wait, as a cluster takes its time to grow. An item that has taken `hedge` times the median is
    given to an idle worker too; the first result counts.
    """

    depth: int = 2
    attempts: int = 5
    refusals: int = 2
    strikes: int = 3
    deaths: int = 10
    silence: float = 60.0
    start: float = 300.0
    hedge: float = 3.0


@dataclass(frozen=True)
class Start:
    """Start a worker of this name."""

    worker: str


@dataclass(frozen=True)
class Stop:
    """End a worker; it is in no one's way any more."""

    worker: str


@dataclass(frozen=True)
class Send(Generic[Item]):
    """Give a worker an item; its result is to come back under the same ticket."""

    worker: str
    ticket: int
    item: Item


Action = Start | Stop | Send[Item]


@dataclass
class _Worker:
    state: WorkerState
    heard: float
    held: dict[int, float] = field(default_factory=dict)
    """Tickets, and since when the worker has been at work on each."""
    strikes: int = 0
    placed: float | None = None
    """Since when its process is there."""


@dataclass
class _Entry(Generic[Item]):
    item: Item
    holders: set[str] = field(default_factory=set)
    lost: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    """The workers that found fault with it."""


class Pool(Generic[Item]):
    """`name` begins its workers' names, which are never used twice. Times are seconds on the driver's clock.

    `hint` says what may keep a worker of this kind silent, and what to do about it.
    """

    def __init__(self, name: str, limits: Limits, hint: str = "") -> None:
        self.name, self.limits, self.hint = name, limits, hint
        self.wanted = 0
        self.workers: dict[str, _Worker] = {}
        self.mended: list[str] = []
        self.losses: Counter[str] = Counter()
        self.setbacks: dict[str, Counter[str]] = {"lost": Counter(), "hedged": Counter()}
        self._entries: dict[int, _Entry[Item]] = {}
        self._queue: deque[int] = deque()
        self._actions: list[Action[Item]] = []
        # READY workers by how many items they hold, each a dict for its order
        self._free: list[dict[str, None]] = [{} for _ in range(limits.depth)]
        self._durations: deque[float] = deque(maxlen=64)
        self._backoff = Backoff()
        self._start_at = 0.0
        self._named = self._tickets = 0

    # -- what there is --------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Items submitted and not finished."""
        return len(self._entries)

    def count(self, *states: WorkerState) -> int:
        return sum(worker.state in states for worker in self.workers.values())

    def take(self) -> list[Action[Item]]:
        """What is to be done, in this order."""
        actions, self._actions = self._actions, []
        return actions

    def faults(self) -> list[str]:
        """What was mended since the last call, a line each."""
        mended, self.mended = self.mended, []
        return mended

    def cancel(self) -> None:
        """Forget every item; what workers still make of them is not used."""
        self._entries.clear()
        self._queue.clear()

    # -- events ---------------------------------------------------------------------------------------------------

    def resize(self, wanted: int, now: float) -> None:
        """Have so many workers; those that are too many finish what they hold first."""
        self.wanted = wanted
        self._fit(now)

    def submit(self, item: Item, now: float) -> int:
        """Queue an item; the ticket under which it comes back."""
        self._tickets += 1
        self._entries[self._tickets] = _Entry(item)
        self._queue.append(self._tickets)
        self._dispatch(now)
        return self._tickets

    def ready(self, worker: str, now: float) -> None:
        """A worker has started."""
        found = self.workers.get(worker)
        if found is None:
            return
        found.heard = now
        if found.state is WorkerState.STARTING:
            found.state = WorkerState.READY
            self._free[0][worker] = None
        self._dispatch(now)

    def heard(self, worker: str, now: float) -> bool:
        """A worker gave a sign of life; whether it was its first, so that its process is there from now on."""
        found = self.workers.get(worker)
        if found is None:
            return False
        found.heard, first = now, found.placed is None
        found.placed = now if first else found.placed
        return first

    def forgive(self, seconds: float) -> None:
        """Nobody listened for so long: that was no worker's silence."""
        for worker in self.workers.values():
            worker.heard += seconds

    def refused(self, worker: str, ticket: int) -> bool:
        """A worker finds fault with the item and not with itself; whether that is certain now, as others do too."""
        entry = self._entries.get(ticket)
        if entry is None:
            return False
        entry.refused.append(worker)
        return len(entry.refused) >= self.limits.refusals

    def finished(self, worker: str, ticket: int, now: float) -> bool:
        """A result has come; False where it is not to be used, as another worker was first."""
        found, entry = self.workers.get(worker), self._entries.pop(ticket, None)
        if found is not None:
            since = self._release(worker, found, ticket, now)
            found.heard, found.strikes = now, 0
            if entry is not None and since is not None:
                self._durations.append(now - since)
            self._settle(worker, found)
        if entry is not None:
            self._backoff.succeeded()
            for other in entry.holders - {worker}:
                self._settle_if_waiting(other)
        self._dispatch(now)
        return entry is not None

    def failed(self, worker: str, ticket: int, cause: str, now: float) -> None:
        """The work raised what may be the worker's fault. Raises ClusterError when the item was lost too often."""
        found = self.workers.get(worker)
        if found is not None:
            self._release(worker, found, ticket, now)
            found.heard = now
            found.strikes += 1
            if found.strikes >= self.limits.strikes:
                self.died(worker, f"failed {found.strikes} times in a row: {cause}", now, "failing")
                self._actions.append(Stop(worker))
            else:
                self._settle(worker, found)
        self._lost(worker, ticket, cause, "failing")
        self._dispatch(now)

    def died(self, worker: str, cause: str, now: float, loss: Loss = "died") -> None:
        """A worker is gone. Raises ClusterError when an item was lost, or workers died, too often."""
        found = self.workers.pop(worker, None)
        if found is None:
            return
        for level in self._free:
            level.pop(worker, None)
        # what it was about to be given, by the death of another a moment ago, is lost with it
        self._actions = [action for action in self._actions if getattr(action, "worker", None) != worker]
        self.mended.append(f"{worker} is gone: {cause}")
        if found.state is not WorkerState.DRAINING:
            self.losses[loss] += 1
            self._backoff.failed()
            if self._backoff.failures > self.limits.deaths + self.wanted:
                raise ClusterError(
                    f"{self._backoff.failures} {self.name} workers died in a row and nothing was finished between; "
                    f"the last: {cause}"
                )
            self._start_at = max(self._start_at, now + self._backoff.seconds)
        for ticket in list(found.held):
            self._lost(worker, ticket, cause, loss)
        self._fit(now)
        self._dispatch(now)

    def tick(self, now: float) -> None:
        """Look at the time: start who was to be started later, give up the silent, hedge what takes long."""
        for name, worker in list(self.workers.items()):
            if worker.state is WorkerState.STARTING:
                if worker.placed is None:
                    continue
                late = now - worker.placed
            else:
                late = 0.0
            silent = now - worker.heard
            if silent > self.limits.silence:
                limit = f"workers.silence_timeout={self.limits.silence:g}"
                self.died(name, f"it was silent for {silent:.0f} s ({limit}){self.hint}", now, "silent")
                self._actions.append(Stop(name))
            elif late > self.limits.start:
                limit = f"workers.start_timeout={self.limits.start:g}"
                self.died(name, f"it had not started after {late:.0f} s ({limit})", now, "silent")
                self._actions.append(Stop(name))
        self._fit(now)
        self._hedge(now)

    # -- decisions ------------------------------------------------------------------------------------------------

    def _fit(self, now: float) -> None:
        """Start the missing, drain those too many: first those still starting, then who holds least."""
        there = [name for name, worker in self.workers.items() if worker.state is not WorkerState.DRAINING]
        if len(there) < self.wanted and now >= self._start_at:
            for _ in range(self.wanted - len(there)):
                name = f"{self.name}-{self._named}"
                self._named += 1
                self.workers[name] = _Worker(WorkerState.STARTING, heard=now)
                self._actions.append(Start(name))
        leaving = sorted(
            there, key=lambda name: (self.workers[name].state is WorkerState.READY, len(self.workers[name].held))
        )
        for name in leaving[: max(0, len(there) - self.wanted)]:
            worker = self.workers[name]
            for level in self._free:
                level.pop(name, None)
            worker.state = WorkerState.DRAINING
            self._settle(name, worker)

    def drain(self, worker: str, now: float) -> None:
        """A worker is to leave, as its node was told to: it finishes what it holds, and another is started at once."""
        found = self.workers.get(worker)
        if found is None or found.state is WorkerState.DRAINING:
            return
        for level in self._free:
            level.pop(worker, None)
        found.state = WorkerState.DRAINING
        self.mended.append(f"{worker} is leaving: its node is being drained")
        self.losses["drained"] += 1
        self._settle(worker, found)
        self._fit(now)

    def _dispatch(self, now: float) -> None:
        while self._queue:
            ticket = self._queue[0]
            if ticket not in self._entries:  # finished by a hedge meanwhile
                self._queue.popleft()
                continue
            entry = self._entries[ticket]
            worker = self._least_busy(entry.holders | self._refusers(entry))
            if worker is None:
                return
            self._queue.popleft()
            self._send(worker, ticket, entry, now)

    def _refusers(self, entry: _Entry[Item]) -> set[str]:
        """Who has refused an item; they get it again only where there is nobody else."""
        if not entry.refused:
            return set()
        there = {name for name, found in self.workers.items() if found.state is WorkerState.READY}
        return set() if there <= set(entry.refused) else set(entry.refused)

    def _least_busy(self, without: Iterable[str], *, idle: bool = False) -> str | None:
        for level in self._free[: 1 if idle else None]:
            for worker in level:
                if worker not in without:
                    return worker
        return None

    def _send(self, worker: str, ticket: int, entry: _Entry[Item], now: float) -> None:
        found = self.workers[worker]
        held = len(found.held)
        del self._free[held][worker]
        found.held[ticket] = now
        entry.holders.add(worker)
        if held + 1 < self.limits.depth:
            self._free[held + 1][worker] = None
        self._actions.append(Send(worker, ticket, entry.item))

    def _release(self, worker: str, found: _Worker, ticket: int, now: float) -> float | None:
        """Take an item from a worker, which then begins the next it holds; since when it was at work on it."""
        since = found.held.get(ticket)
        if since is None:
            return None
        if found.state is WorkerState.READY:
            for level in self._free:
                level.pop(worker, None)
        del found.held[ticket]
        for following in found.held:
            found.held[following] = now
            break
        if found.state is WorkerState.READY:
            self._free[len(found.held)][worker] = None
        return since

    def _settle(self, worker: str, found: _Worker) -> None:
        """Let a worker go that was only finishing."""
        if found.state is WorkerState.DRAINING and not found.held:
            del self.workers[worker]
            self._actions.append(Stop(worker))

    def _settle_if_waiting(self, worker: str) -> None:
        """A leaving worker's last item may have been finished elsewhere: it need not finish it too."""
        found = self.workers.get(worker)
        if found is None or found.state is not WorkerState.DRAINING:
            return
        if all(ticket not in self._entries for ticket in found.held):
            found.held.clear()
            self._settle(worker, found)

    def _lost(self, worker: str, ticket: int, cause: str, loss: Loss) -> None:
        entry = self._entries.get(ticket)
        if entry is None:
            return
        entry.holders.discard(worker)
        entry.lost.append(f"{worker}: {cause}")
        self.setbacks["lost"][loss] += 1
        if entry.holders:
            return  # a hedge is still at it
        if len(entry.lost) >= self.limits.attempts:
            raise ClusterError(f"a task was lost {len(entry.lost)} times: " + "; ".join(entry.lost))
        self.mended.append(f"{worker} lost a task ({cause}), attempt {len(entry.lost)}")
        self._queue.appendleft(ticket)

    def _hedge(self, now: float) -> None:
        if self._queue or len(self._durations) < 5:
            return
        late = self.limits.hedge * statistics.median(self._durations)
        for name, found in list(self.workers.items()):
            taken = now - next(iter(found.held.values()), now)  # the first is at work; the others wait behind it
            if taken <= late:
                continue
            for ticket in list(found.held):
                entry = self._entries.get(ticket)
                other = None if entry is None or len(entry.holders) > 1 else self._least_busy(entry.holders, idle=True)
                if entry is None or other is None:
                    continue
                self.mended.append(f"{name} takes long over a task ({taken:.1f} s); {other} is asked too")
                self.setbacks["hedged"]["slow"] += 1
                self._send(other, ticket, entry, now)
