"""The stages on Ray: the same three as in `pcpo_ray.training.local`, each role in processes of its own.

Who owns what: the driver calls samplers and the learner, so the driver owns trajectories, images and weights, which
survive who made them. No actor is detached: all end with the driver.
"""

import contextlib
import dataclasses
import math
import random
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ray import exceptions

from pcpo_ray import config
from pcpo_ray.cluster import actors, broadcast
from pcpo_ray.cluster.control.driver import DriverControl
from pcpo_ray.cluster.failures import WeightsGoneError, brief
from pcpo_ray.cluster.head import Head
from pcpo_ray.cluster.launch import BEAT, Launcher, asked_for, get, room_for, short_of
from pcpo_ray.cluster.learner import RayLearner, Stored, Versions
from pcpo_ray.cluster.pool import Item, Result, Sends, WorkerPool
from pcpo_ray.cluster.waiting import Waiter
from pcpo_ray.config import ROLLOUT_STORE_FRACTION
from pcpo_ray.data.records import PoolStatus, RunStatus
from pcpo_ray.data.requests import Fault, Request
from pcpo_ray.data.types import Handle, Rollout, Scored, Task
from pcpo_ray.data.updates import Published
from pcpo_ray.errors import ClusterError, LearnerLostError, RolloutsLostError, StopAskedError, WeightsError
from pcpo_ray.rewards import probes
from pcpo_ray.runs.folder import RunFolder
from pcpo_ray.training import status
from pcpo_ray.training.restarts import AT_ONE_STEP
from pcpo_ray.training.scheduling.workers import Note


def late(pool: PoolStatus) -> bool:
    """Tell whether nobody of a pool has started that is to have somebody."""
    return not pool.ready and pool.wanted > 0


class RolePool(WorkerPool[Item, Result]):
    """A pool of one role's actors, as many as its config says."""

    def __init__(
        self,
        name: str,
        launcher: Launcher,
        cls: type,
        role: config.Role,
        send: Sends[Item, Result],
        hint: str = "",
        first: Sequence[Any] = (),
    ) -> None:
        self.role = role
        super().__init__(
            name,
            lambda worker: launcher.make(cls, role, worker),
            send,
            workers=role.workers,
            silence=launcher.run.workers.silence_timeout,
            start=launcher.run.workers.start_timeout,
            hint=hint,
            first=first,
            answers=launcher.answers,
        )


class RaySamplers(RolePool[Task, Rollout]):
    """A pool of sampler actors, which load the `versions` that their tasks name."""

    def __init__(self, launcher: Launcher, versions: Versions) -> None:
        self.versions = versions
        super().__init__("sampler", launcher, actors.SamplerActor, launcher.run.workers.samplers, self._sample)

    def _sample(self, actor: Any, task: Task) -> tuple[Any, Callable[[Any], Rollout]]:
        stored = self.versions.get(task.weights)
        if stored is None:
            published = sorted(self.versions)
            raise WeightsError(f"a task asks for (version, averaged) {task.weights}; published are {published}")
        sample = actor.sample.options(num_returns=3)
        made, trajectory, images = sample.remote(task, stored.manifest.checksum, list(stored.references))
        wanted = task.purpose == "train"

        def result(info: actors.SampleReport) -> Rollout:
            return Rollout(
                task=task,
                trajectory=Handle(reference=trajectory) if wanted else None,
                images=Handle(reference=images),
                bytes=info.bytes,
                checksum=info.checksum,
                seconds=info.seconds,
                worker=info.worker,
                lent=info.lent,
            )

        return made, result

    def _gone(self, item: Task, cause: Exception) -> None:
        """Note that a task's weights are gone; it is sent once more where they were published again meanwhile."""
        now = self.versions.get(item.weights)
        if now is not None and isinstance(cause, WeightsGoneError) and cause.manifest != now.references[0].hex():
            self.submit(item)
        else:
            super()._gone(item, cause)


class RayScorers(RolePool[Rollout, Scored]):
    """A pool of scorer actors."""

    def __init__(self, launcher: Launcher) -> None:
        run = launcher.run
        names = ", ".join(dict.fromkeys(reward.name for reward in (*run.rewards, *run.evaluation.rewards)))
        hint = (
            f"; a reward ({names}) that holds Python's lock for so long, as a loop in C may, looks dead: let it "
            "release the lock, or raise workers.silence_timeout"
        )
        first = [probes.prompts_to_ask(run)]
        super().__init__("scorer", launcher, actors.ScorerActor, run.workers.scorers, self._score, hint, first)
        if any(isinstance(one, config.Remote | config.Judge) for one in (*run.rewards, *run.evaluation.rewards)):
            # a server that is slow or away would be asked twice for the same, and some are paid by the token
            self.pool.limits = dataclasses.replace(self.pool.limits, hedge=math.inf)

    def _score(self, actor: Any, rollout: Rollout) -> tuple[Any, Callable[[Any], Scored]]:
        reference = actor.score.remote(rollout.task, rollout.images.reference)

        def result(found: dict[str, Any]) -> Scored:
            return Scored(rollout=rollout, **found)

        return reference, result


class RayStages:
    """The three stages on Ray. `close` ends the actors, and what was started for them (`ending`)."""

    def __init__(
        self,
        run: config.Run,
        *,
        control: DriverControl | None = None,
        say: Callable[[str], None],
        phase: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.run = run
        self.ending = contextlib.ExitStack()
        self.closed = False
        self.control = control
        self.looked = 0.0
        self.waiter = Waiter()
        self.recovered: list[str] = []
        """Faults that `faults` has not told of yet."""
        self.asked: list[Request] = []
        """Requests to a run that was starting, for `exchange` to return."""
        self.versions: Versions = {}
        self.head = Head(say)
        launcher = Launcher(run=run, answers=self.head.answers)
        self.learner = RayLearner(
            launcher, self.versions, self.head, lambda: self.samplers, lambda: (self.samplers, self.scorers), say
        )
        self.lost_starts = 0
        self.samplers = RaySamplers(launcher, self.versions)
        self.scorers = RayScorers(launcher)
        with contextlib.ExitStack() as unless_ready:
            unless_ready.callback(self.close)
            self._await_ready(say, phase)
            unless_ready.pop_all()

    def _await_ready(self, say: Callable[[str], None], phase: Callable[[str], None]) -> None:
        """Wait for the learner, and for the first sampler and scorer; the others join when they can.

        Raises ClusterError if they are not ready in time, LearnerLostError if the learner is lost again and again, and
        StopAskedError if the run is asked to stop.
        """
        timeout = self.run.workers.start_timeout
        deadline = time.monotonic() + timeout
        asked = asked_for(self.run.workers)
        waiting = "the workers to start"
        if short := short_of(asked, self.head.last.total):
            waiting = f"the cluster to grow, as it is too small so far: {short}"
            say(f"the cluster is too small so far: {short}; waiting for it to grow")
        while True:
            self.samplers.collect()
            self.scorers.collect()
            pools = {**self.pool_status(), "learner": PoolStatus(wanted=1, ready=int(self._learner_ready()))}
            self.recovered = self.faults()
            phase("starting the workers: " + ", ".join(f"{r} {p.ready}/{p.wanted}" for r, p in pools.items()))
            if not any(map(late, pools.values())):
                return
            if self.control is not None:
                ready = {role: pool.ready for role, pool in pools.items()}
                now = status.starting(self.run, waiting, ready)
                self.asked += self.control.exchange(now.row()) if self.head.answers() else []
                if any(request.stop for request in self.asked):
                    self.control.end(dataclasses.replace(now, state="stopped").row())
                    raise StopAskedError
            if time.monotonic() > deadline:
                missing = [f"{role} ({pool.ready} of {pool.wanted})" for role, pool in pools.items() if late(pool)]
                free = self.head.last.free
                short = short_of(asked, self.head.last.total)
                raise ClusterError(
                    f"not ready after {timeout:g} s (workers.start_timeout): {', '.join(missing)}; asked for was "
                    f"{asked}, free is { ({name: free.get(name, 0.0) for name in asked}) }"
                    + (f"; the cluster is too small: {short}" if short else "")
                    + (
                        f"; {len(self.recovered)} faults meanwhile, the last: {self.recovered[-1]}"
                        if self.recovered
                        else ""
                    )
                )
            self._wait(0.5)

    def _learner_ready(self) -> bool:
        """Tell whether the learner has started. One that is lost on the way is replaced, AT_ONE_STEP times at most."""
        try:
            return self.learner.ready()
        except LearnerLostError as error:
            self.lost_starts += 1
            if self.lost_starts == AT_ONE_STEP:
                raise LearnerLostError(
                    f"{error}; the learner was lost {AT_ONE_STEP} times while it started, so the run gives up"
                ) from error
            self.recovered.append(f"{error}; another learner starts")
            self.learner.restart()
            return False

    def wait(self, timeout: float) -> None:
        self._wait(timeout)
        self.learner.listen()

    def _wait(self, timeout: float) -> None:
        references = [*self.samplers.references(), *self.scorers.references(), *self.learner.references()]
        self.waiter.wait(references, timeout)
        if time.monotonic() - self.looked > BEAT:
            self.looked = time.monotonic()
            self.learner.draining = leaving = self.head.last.draining
            self.samplers.drain_nodes(leaving)
            self.scorers.drain_nodes(leaving)
            self._look_for_room()

    def _look_for_room(self) -> None:
        """Find out what the cluster has room for, while workers wait for a place."""
        unplaced = {pool: pool.status().unplaced for pool in (self.samplers, self.scorers)}
        for pool, count in unplaced.items():
            pool.room = room_for(pool.role, pool.own, count, self.head.last.free)

    def publish(self, *, oldest: int, averaged: bool = False) -> Published:
        started = time.perf_counter()
        for key in [key for key in self.versions if key[0] < oldest]:
            del self.versions[key]
        snapshot = self.learner.snapshot(averaged=averaged)
        received: list[str] = []
        if self.run.workers.sync == "broadcast" and not averaged:
            first, members = self.learner.actors[0], self.samplers.members()
            seconds = broadcast.seconds_for(sum(snapshot.manifest.sizes))
            received, failed = broadcast.send(first, snapshot.references[0], members, seconds)
            self.recovered += failed
        if not averaged:
            self.learner.lend(snapshot.manifest)
        return self._published(snapshot, started, received)

    def publish_lost(self, version: int, averaged: bool) -> Published:
        started = time.perf_counter()
        return self._published(self.learner.snapshot_again(version, averaged), started)

    def republish(self, folder: RunFolder, step: int, version: int) -> Published:
        started = time.perf_counter()
        return self._published(self.learner.older(folder, step, version), started)

    def _published(self, snapshot: Stored, started: float, received: Sequence[str] = ()) -> Published:
        manifest = snapshot.manifest
        self.versions[manifest.key] = snapshot
        return Published(
            version=manifest.version,
            averaged=manifest.averaged,
            checksum=manifest.checksum,
            bytes=sum(manifest.sizes),
            seconds=time.perf_counter() - started,
            received=tuple(received),
        )

    def rollout_budget(self) -> float:
        return ROLLOUT_STORE_FRACTION * float(self.head.last.total.get("object_store_memory", math.inf))

    def fetch(self, handle: Handle) -> np.ndarray:
        try:
            images: np.ndarray = get(handle.reference, self.run.workers.task_timeout, "images")
        except exceptions.ObjectLostError as error:
            raise RolloutsLostError(f"images are gone: {brief(error)}") from error
        return images if handle.rows is None else images[handle.rows]

    def resize(self, *, samplers: int | None = None, scorers: int | None = None) -> None:
        for pool, count in ((self.samplers, samplers), (self.scorers, scorers)):
            if count is not None:
                pool.resize(count)

    def pool_status(self) -> dict[str, PoolStatus]:
        return {"samplers": self.samplers.status(), "scorers": self.scorers.status()}

    def inject_fault(self, fault: Fault) -> None:
        number = signal.SIGSTOP if fault == "hang" else signal.SIGKILL
        if fault == "learner":
            found = self.learner.actors
        else:
            pool = self.scorers if fault == "scorer" else self.samplers
            found = list(pool.members().values()) or (self.learner.actors if pool is self.samplers else [])
        for actor in found if fault == "all_samplers" or not found else [random.choice(found)]:
            actor.inject_fault.remote(int(number))

    def exchange(self, status: RunStatus) -> list[Request]:
        if not self.head.answers():
            return []
        if self.control is None:  # an evaluation of a run that goes on has none
            self.control = DriverControl(self.run.name, status.row())
        asked, self.asked = self.asked, []
        return [*asked, *self.control.exchange(status.row())]

    def end(self, status: RunStatus) -> None:
        if self.control is not None:
            self.control.end(status.row())

    def faults(self) -> list[str]:
        recovered, self.recovered = self.recovered, []
        return [*recovered, *self.samplers.faults(), *self.scorers.faults()]

    def notes(self) -> list[Note]:
        return [*self.samplers.notes(), *self.scorers.notes()]

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self.head.close()
        if self.control is not None:
            self.control.close()
        self.samplers.close()
        self.scorers.close()
        self.learner.close()
        self.ending.close()
