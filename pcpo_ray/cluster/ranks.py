"""The learner's rank actors: they get their places together, load once all have one, and are listened to."""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import ray

from pcpo_ray.cluster.calls import Call, all_answered
from pcpo_ray.cluster.failures import DEAF
from pcpo_ray.cluster.head import Head
from pcpo_ray.cluster.launch import BEAT, Launcher, end
from pcpo_ray.cluster.learner_actor import LearnerActor
from pcpo_ray.errors import LearnerLostError
from pcpo_ray.runs.lines import counted


class Ranks:
    """All ranks of a learner, from their making to the loss of one of them: none goes on alone."""

    def __init__(self, launcher: Launcher, head: Head) -> None:
        self.workers, self.role, self.head = launcher.run.workers, launcher.run.workers.learner, head
        self.numbered = 0
        self.placement = launcher.reserve(self.role)
        self.actors = [
            launcher.make(LearnerActor, self.role, f"learner-{index}", index, **self.placement.options(index))
            for index in range(self.role.ranks)
        ]
        self.beats = [self._beat(index, 0.0) for index in range(len(self.actors))]
        self.asked = self.listened = time.monotonic()
        self.heard = [self.listened] * len(self.actors)
        self.nodes: dict[int, str] = {}
        """The node of each rank that was heard of, which has a place since."""
        self.placed: float | None = None
        """The time at which all had a place, and began to load."""
        self.starts: list[Call] = []
        self.started = False

    # -- asking -------------------------------------------------------------------------------------------------------

    def ask(self, index: int, name: str, *arguments: Any, awaited: str, returns: int = 1) -> Call:
        """Ask a rank to do something, once, however often it is asked; an argument may be another call's answer."""
        self.numbered += 1
        number = self.numbered
        call = self.actors[index].call.options(name=f"learner.{name}", num_returns=returns)

        def ask() -> Any:
            return call.remote(number, name, *(one.newest() if isinstance(one, Call) else one for one in arguments))

        return Call(ask, awaited)

    def ask_all(self, name: str, *arguments: Any, awaited: str) -> list[Call]:
        return [self.ask(index, name, *arguments, awaited=awaited) for index in range(len(self.actors))]

    def answers(self, calls: Sequence[Call], seconds: float = 0.0) -> list[Any]:
        """Wait for the answers of ranks that wait for each other; the first failure is raised.

        Raises LearnerLostError where one dies, falls silent, or has not answered after workers.task_timeout, or after
        `seconds` where the work may take more.
        """
        limit = max(self.workers.task_timeout, seconds)
        deadline = time.monotonic() + limit
        while not all_answered(calls):
            if time.monotonic() > deadline:
                why = " (workers.task_timeout)" if limit > seconds else ", longer than so many bytes may take"
                raise LearnerLostError(f"waited {limit:.0f} s{why} for {calls[0].awaited}")
            ray.wait([call.reference for call in calls], num_returns=len(calls), timeout=0.5)
            self.listen()
        return [call.answer for call in calls]

    # -- signs of life ------------------------------------------------------------------------------------------------

    def references(self) -> list[ray.ObjectRef]:
        """Return the references to wait for."""
        return [call.reference for call in (*self.beats, *self.starts)]

    def ready(self) -> bool:
        """Tell whether every rank has started. Raises LearnerLostError, or the error that its start raised."""
        self.listen()
        if self.starts and all_answered(self.starts):
            self.starts, self.started = [], True
        return self.started

    def listen(self) -> None:
        """Look for signs of life; have all load once each has a place.

        Raises LearnerLostError where one is dead, silent for too long or late to start, and ClusterError where the
        cluster's head is gone.
        """
        self.head.listen()
        now = time.monotonic()
        if (deaf := now - self.listened) > DEAF:
            self.heard = [heard + deaf for heard in self.heard]
            self.asked += deaf
            self.placed = None if self.placed is None else self.placed + deaf
        self.listened = now
        for index, beat in enumerate(self.beats):
            if beat.answered():
                _, self.nodes[index] = beat.answer
                self.heard[index] = now
                self.beats[index] = self._beat(index, min(BEAT, self.workers.silence_timeout / 4))
            silent = now - self.heard[index]
            if index in self.nodes and silent > self.workers.silence_timeout:
                raise LearnerLostError(
                    f"rank {index} of the learner was silent for {silent:.0f} s (workers.silence_timeout)"
                )
        if self.placed is None and len(self.nodes) == len(self.actors):
            self.placed = now
            self._load()
        elif self.placed is not None and not self.started and now - self.placed > self.workers.start_timeout:
            raise LearnerLostError(
                f"the learner had not started {now - self.placed:.0f} s after it had a place "
                f"(workers.start_timeout={self.workers.start_timeout:g})"
            )

    def waiting(self) -> float:
        """Return the seconds for which the ranks have waited for their places; 0 once they have them."""
        return 0.0 if self.placed is not None else time.monotonic() - self.asked

    def room(self) -> str:
        """Describe what the ranks ask for, and what the cluster has free."""
        asked = {"CPU": self.role.cpus, "GPU": self.role.gpus, **self.role.resources}
        free = {name: self.head.last.free.get(name, 0.0) for name in asked}
        return f"{counted(self.role.ranks, 'rank')} of {asked} each, free is {free}"

    def _beat(self, index: int, seconds: float) -> Call:
        return Call(partial(self.actors[index].alive.remote, seconds), "the learner to live")

    def _load(self) -> None:
        awaited = "the learner to start"
        if len(self.actors) == 1:
            self.starts = [self.ask(0, "start", awaited=awaited)]
        else:
            met = self.ask(0, "meet", "ranks", awaited=awaited)
            self.starts = self.ask_all("start_with", met, awaited=awaited)

    def close(self) -> None:
        end(self.actors)
        self.placement.close()
