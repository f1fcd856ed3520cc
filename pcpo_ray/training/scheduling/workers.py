"""The vocabulary of a pool: workers and their states, items and their holders, limits, and the actions decided on."""

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

Item = TypeVar("Item")


class WorkerState(enum.Enum):
    """A worker is being started, at work, or finishing what it holds before it goes."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


Cause = Literal["died", "silent", "failing", "drained"]
"""The reason for replacing a worker."""

Note = tuple[Literal["note", "recovered"], str]
"""A line about a pool that is no fault: a decision worth a note, or the end of a fault."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits beyond which a pool gives up on an item or a worker. Times are seconds.

    `depth` is how many items a worker holds: one at work, and one that is there when it is done. An item may be lost
    `attempts` times. A worker may fail `strikes` times in a row before it is replaced. `deaths` workers may die in a
    row with nothing finished in between. An item that `refusals` workers found fault with is at fault.

    A worker that was not heard of for `silence` is given up, as is one that has not started `start` after it had a
    place. It may wait for a place without limit, as a cluster takes its time to grow. An item that has taken `hedge`
    times the median is also given to an idle worker; the first result counts.
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
class Worker:
    """A worker as its pool knows it."""

    state: WorkerState
    heard: float
    """The time of its last sign of life."""
    held: dict[int, float] = field(default_factory=dict)
    """The tickets that it holds, and since when it has been at work on each."""
    strikes: int = 0
    instead: tuple[str, float] | None = None
    """The worker that it was started to replace, and when that one was lost."""
    placed: float | None = None
    """The time at which its process was first seen; None: it waits for a place."""
    lent: bool = False
    """True for a worker of another role, which takes items while it is lent: it is not this pool's to start or stop."""

    def at_work(self, now: float) -> float:
        """Return the seconds spent on its first item; the others wait behind it."""
        return now - next(iter(self.held.values()), now)


@dataclass
class Entry(Generic[Item]):
    """An item that is not finished, with the workers that hold it, lost it or refused it."""

    item: Item
    holders: set[str] = field(default_factory=set)
    lost: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


class FreeWorkers:
    """The ready workers that can take an item, by how many they hold; in each level, whoever came first is first."""

    def __init__(self, depth: int) -> None:
        self._levels: list[dict[str, None]] = [{} for _ in range(depth)]

    def put(self, worker: str, held: int) -> None:
        """Note that a worker holds so many items now; one that holds the most is not free."""
        self.remove(worker)
        if held < len(self._levels):
            self._levels[held][worker] = None

    def put_back(self, worker: str, held: int) -> None:
        """Do as `put` for a worker that may have been removed; one that is there keeps its place."""
        if not any(worker in level for level in self._levels):
            self.put(worker, held)

    def remove(self, worker: str) -> None:
        """Forget a worker, if it is there."""
        for level in self._levels:
            level.pop(worker, None)

    def least_busy(self, without: Iterable[str], *, idle: bool = False) -> str | None:
        """Find the worker that holds least, none of `without`; with `idle`, one that holds nothing."""
        for level in self._levels[: 1 if idle else None]:
            for worker in level:
                if worker not in without:
                    return worker
        return None
