"""A pool and simulated workers: seconds of their own, faults where a seeded generator puts them."""

import heapq
import itertools
import random

from pcpo_ray.training.scheduling.pool import Pool
from pcpo_ray.training.scheduling.workers import Limits, Send, Start, Stop, WorkerState


class Workers:
    """Drives a pool of workers that take `seconds` for an item and die, fail or hang with the given chances."""

    def __init__(self, wanted, *, seed=0, seconds=1.0, die=0.0, fail=0.0, hang=0.0, limits=None):
        self.pool = Pool("simulated", limits or Limits())
        self.random = random.Random(seed)
        self.seconds, self.die, self.fail, self.hang = seconds, die, fail, hang
        self.now = 0.0
        self.events = []
        self.order = itertools.count()
        self.alive = {}
        self.finished, self.faults = [], 0
        self.tickets = {}
        self.decisions = 0
        self.pool.resize(wanted, self.now)
        self.perform()

    def submit(self, item):
        self.tickets[self.pool.submit(item, self.now)] = item
        self.perform()

    def after(self, seconds, *event):
        heapq.heappush(self.events, (self.now + seconds, next(self.order), event))

    def perform(self):
        for action in self.pool.take():
            self.decisions += 1
            match action:
                case Start(worker):
                    self.alive[worker] = self.now
                    self.after(0.5, "ready", worker, 0)
                case Stop(worker):
                    self.alive.pop(worker, None)
                case Send(worker, ticket, item):
                    if worker not in self.alive:
                        continue
                    assert self.tickets.setdefault(ticket, item) == item
                    start = max(self.now, self.alive[worker])
                    chance = self.random.random()
                    what = "finished"
                    for name, share in (("died", self.die), ("failed", self.fail), ("hung", self.hang)):
                        if chance < share:
                            what = name
                            break
                        chance -= share
                    took = self.seconds * self.random.uniform(0.8, 1.2)
                    self.alive[worker] = start + took
                    self.after(start + took - self.now, what, worker, ticket)

    def ready(self, state=WorkerState.READY):
        return sum(worker.state is state for worker in self.pool.workers.values())

    def step(self):
        """The next event, or a second of nothing."""
        if not self.events:
            self.now += 1.0
            self.pool.tick(self.now)
            return self.perform()
        when, _, (what, worker, ticket) = heapq.heappop(self.events)
        while self.now + 1.0 < when:
            self.now += 1.0
            for name in self.alive:
                if self.alive[name] != float("inf"):
                    self.pool.heard(name, self.now)
            self.pool.tick(self.now)
            self.perform()
        self.now = max(self.now, when)
        if worker in self.alive and self.alive[worker] != float("inf"):
            if what == "ready":
                self.pool.ready(worker, self.now)
            elif what == "finished":
                if self.pool.finished(worker, ticket, self.now):
                    self.finished.append(self.tickets[ticket])
            else:
                self.faults += 1
                if what == "died":
                    del self.alive[worker]
                    self.pool.died(worker, "it was killed", self.now)
                elif what == "failed":
                    self.pool.failed(worker, ticket, "RuntimeError", self.now)
                else:
                    self.alive[worker] = float("inf")
        self.perform()

    def run(self, *, until=None, steps=1_000_000):
        for _ in range(steps):
            if not len(self.pool) or (until is not None and len(self.finished) >= until):
                return
            self.step()
        raise AssertionError(f"not done: {len(self.pool)} left at {self.now}")

    def settle(self, count):
        """Let time pass until there are so many workers at work."""
        for _ in range(1000):
            if self.ready() == count and not self.ready(WorkerState.DRAINING):
                return
            self.step()
        raise AssertionError(f"{self.ready()} workers at {self.now}, not {count}")
