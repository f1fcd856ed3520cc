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
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import ray
from ray import exceptions

from pcpo_ray import config
from pcpo_ray.cluster import actors
from pcpo_ray.cluster.control.driver import DriverControl
from pcpo_ray.cluster.failures import brief
from pcpo_ray.cluster.launch import BEAT, Launcher, asked_for, draining_nodes, get, short_of
from pcpo_ray.cluster.learner import RayLearner
from pcpo_ray.cluster.pool import Item, Result, Sends, WorkerPool
from pcpo_ray.config import ROLLOUT_STORE_FRACTION
from pcpo_ray.data.requests import Fault, Request
from pcpo_ray.data.types import Handle, Rollout, Scored, Task
from pcpo_ray.data.updates import PoolStatus
from pcpo_ray.errors import ClusterError, RolloutsLostError
from pcpo_ray.training import status


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
    ) -> None:
        super().__init__(
            name,
            lambda worker: launcher.make(cls, role, worker),
            send,
            workers=role.workers,
            silence=launcher.run.workers.silence_timeout,
            start=launcher.run.workers.start_timeout,
            hint=hint,
        )


class RaySamplers(RolePool[Task, Rollout]):
    """A pool of sampler actors, which pull their weights from `learner`."""

    def __init__(self, launcher: Launcher, learner: RayLearner) -> None:
        self.learner = learner
        super().__init__("sampler", launcher, actors.SamplerActor, launcher.run.workers.samplers, self._sample)

    def _sample(self, actor: Any, task: Task) -> tuple[Any, Callable[[Any], Rollout]]:
        stored = self.learner.pulled(task)
        sample = actor.sample.options(num_returns=3)
        made, trajectory, images = sample.remote(task, stored.checksum, list(stored.references))
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
            )

        return made, result


class RayScorers(RolePool[Rollout, Scored]):
    """A pool of scorer actors."""

    def __init__(self, launcher: Launcher) -> None:
        run = launcher.run
        names = ", ".join(dict.fromkeys(reward.name for reward in (*run.rewards, *run.evaluation.rewards)))
        hint = (
            f"; a reward ({names}) that holds Python's lock for so long, as a loop in C may, looks dead: let it "
            "release the lock, or raise workers.silence_timeout"
        )
        super().__init__("scorer", launcher, actors.ScorerActor, run.workers.scorers, self._score, hint)
        if any(isinstance(reward, config.Remote) for reward in (*run.rewards, *run.evaluation.rewards)):
            # a server that is slow or away would be asked twice for the same
            self.pool.limits = dataclasses.replace(self.pool.limits, hedge=math.inf)

    def _score(self, actor: Any, rollout: Rollout) -> tuple[Any, Callable[[Any], Scored]]:
        reference = actor.score.remote(rollout.task, rollout.images.reference)

        def result(found: tuple[dict[str, list[float]], dict[str, str], Mapping[str, np.ndarray], float]) -> Scored:
            scores, failures, measured, seconds = found
            return Scored(rollout=rollout, scores=scores, failures=failures, seconds=seconds, measured=measured)

        return reference, result


class RayStages:
    """The three stages on Ray. `close` ends the actors, and what was started for them (`ending`)."""

    def __init__(self, run: config.Run, *, desk: DriverControl | None = None, say: Callable[[str], None]) -> None:
        self.run = run
        self.ending = contextlib.ExitStack()
        self.closed = False
        launcher = Launcher(run=run)
        self.desk = desk
        self.looked = 0.0
        self.early: list[str] = []
        self.learner = RayLearner(launcher)
        self.samplers = RaySamplers(launcher, self.learner)
        self.scorers = RayScorers(launcher)
        self.learner.receivers = self.samplers.members
        with contextlib.ExitStack() as unless_ready:
            unless_ready.callback(self.close)
            self._await_ready(say)
            unless_ready.pop_all()

    def _await_ready(self, say: Callable[[str], None]) -> None:
        """Wait for the learner, and for the first sampler and scorer; the others join when they can."""
        timeout = self.run.workers.start_timeout
        deadline = time.monotonic() + timeout
        asked = asked_for(self.run.workers)
        waiting = "the workers to start"
        if short := short_of(asked, ray.cluster_resources()):
            waiting = f"the cluster to grow, as it is too small so far: {short}"
            say(f"the cluster is too small so far: {short}; waiting for it to grow")
        while True:
            self.samplers.collect()
            self.scorers.collect()
            self.early = self.faults()
            sizes = {**self.sizes(), "learner": PoolStatus(wanted=1, ready=int(self.learner.ready()))}
            if all(size.ready for size in sizes.values()):
                return
            if self.desk is not None:
                self.desk.tell(status.starting(self.run, waiting, {role: size.ready for role, size in sizes.items()}))
            if time.monotonic() > deadline:
                missing = [f"{role} ({size.ready} of {size.wanted})" for role, size in sizes.items() if not size.ready]
                free = ray.available_resources()
                short = short_of(asked, ray.cluster_resources())
                raise ClusterError(
                    f"not ready after {timeout:g} s (workers.start_timeout): {', '.join(missing)}; asked for was "
                    f"{asked}, free is { ({name: free.get(name, 0.0) for name in asked}) }"
                    + (f"; the cluster is too small: {short}" if short else "")
                    + (f"; {len(self.early)} faults meanwhile, the last: {self.early[-1]}" if self.early else "")
                )
            self.wait(0.5)

    def wait(self, timeout: float) -> None:
        references = [*self.samplers.references(), *self.scorers.references(), *self.learner.references()]
        ray.wait(references, timeout=timeout)
        self.learner.listen()
        if time.monotonic() - self.looked > BEAT:
            self.looked = time.monotonic()
            self.learner.draining = leaving = draining_nodes()
            self.samplers.drain_nodes(leaving)
            self.scorers.drain_nodes(leaving)

    def room(self) -> float:
        return ROLLOUT_STORE_FRACTION * float(ray.cluster_resources().get("object_store_memory", math.inf))

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

    def sizes(self) -> dict[str, PoolStatus]:
        return {"samplers": self.samplers.size(), "scorers": self.scorers.size()}

    def disturb(self, fault: Fault) -> None:
        number = signal.SIGSTOP if fault == "hang" else signal.SIGKILL
        if fault == "learner":
            found = self.learner.actors
        else:
            pool = self.scorers if fault == "scorer" else self.samplers
            found = list(pool.members().values())
        for actor in found if fault == "all_samplers" or not found else [random.choice(found)]:
            actor.fall.remote(int(number))

    def exchange(self, status: Mapping[str, Any]) -> list[Request]:
        if self.desk is None:  # an evaluation of a run that goes on has none
            self.desk = DriverControl(self.run.name, status)
        return self.desk.exchange(status)

    def end(self, status: Mapping[str, Any]) -> None:
        if self.desk is not None:
            self.desk.end(status)

    def faults(self) -> list[str]:
        early, self.early = self.early, []
        return [*early, *self.samplers.faults(), *self.scorers.faults(), *self.learner.faults()]

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        if self.desk is not None:
            self.desk.close()
        self.samplers.close()
        self.scorers.close()
        self.learner.close()
        self.ending.close()
