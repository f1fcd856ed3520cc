"""The stages on Ray: `connect(run)` gives the same three as `pcpo_ray.local`, each role in processes of its own.

Who owns what: the driver calls samplers, so the driver owns trajectories and images; the weight store calls the
learner, so the store owns the weights. No actor is detached: all end with the driver.
"""

import os
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import exceptions

from pcpo_ray import config
from pcpo_ray.cluster import actors
from pcpo_ray.cluster.pool import WorkerPool, reraise
from pcpo_ray.errors import ClusterError
from pcpo_ray.stages import Published, State, Update, Weighted
from pcpo_ray.trajectory import Handle, Rollout, Scored, Task


class RaySamplers:
    """A pool of sampler actors."""

    def __init__(self, pool: WorkerPool[Task, Rollout]) -> None:
        self.pool = pool

    def submit(self, task: Task) -> None:
        self.pool.submit(task)

    def collect(self) -> list[Rollout]:
        return self.pool.collect()


class RayScorers:
    """A pool of scorer actors."""

    def __init__(self, pool: WorkerPool[Rollout, Scored]) -> None:
        self.pool = pool

    def submit(self, rollout: Rollout) -> None:
        self.pool.submit(rollout)

    def collect(self) -> list[Scored]:
        return self.pool.collect()


class RayLearner:
    """The learner actor and the weight store that publishes for it."""

    def __init__(self, actor: Any, store: Any, timeout: float) -> None:
        self.actor = actor
        self.store = store
        self.timeout = timeout
        self.running: ray.ObjectRef | None = None

    def begin(self, step: int, batch: Sequence[Weighted]) -> None:
        trajectories = [w.rollout.trajectory.reference for w in batch if w.rollout.trajectory is not None]
        versions = [weighted.rollout.task.version for weighted in batch]
        advantages = [list(weighted.advantages) for weighted in batch]
        self.running = self.actor.update.remote(step, versions, advantages, *trajectories)

    def collect(self) -> Update | None:
        if self.running is None or not ray.wait([self.running], timeout=0)[0]:
            return None
        reference, self.running = self.running, None
        update: Update = self._get(reference, "the update")
        return update

    def publish(self, *, averaged: bool = False) -> Published:
        published: Published = self._get(self.store.publish.remote(self.actor, averaged), "the weight store to publish")
        return published

    def save(self, folder: Path, state: State) -> None:
        self._get(self.actor.save.remote(folder.resolve(), state), f"the learner to save {folder}")

    def restore(self, folder: Path) -> State:
        state: State = self._get(self.actor.restore.remote(folder.resolve()), f"the learner to restore {folder}")
        return state

    def _get(self, reference: ray.ObjectRef, awaited: str) -> Any:
        try:
            return ray.get(reference, timeout=self.timeout)
        except exceptions.GetTimeoutError:
            raise ClusterError(f"waited {self.timeout:g} s (workers.task_timeout) for {awaited}") from None
        except exceptions.RayError as error:
            raise reraise(error, awaited) from error


class RayStages:
    """The three stages on Ray. `close` ends the actors, and Ray itself where `connect` started it."""

    def __init__(self, run: config.Run, *, owns_ray: bool) -> None:
        self.timeout = run.workers.task_timeout
        self.owns_ray = owns_ray
        self.actors: list[Any] = []
        self.closed = False
        roles = run.workers
        search_path = str(Path.cwd())
        # samplers find the store by its name: a handle in their arguments would not outlive their restart
        store_name = f"weights-{uuid.uuid4().hex}"
        store = self._start(actors.WeightStore, cpus=0, gpus=0, name=store_name)
        learner = self._start(actors.LearnerActor, run, search_path, cpus=roles.learner.cpus, gpus=roles.learner.gpus)
        samplers = [
            self._start(
                actors.SamplerActor,
                run,
                f"sampler-{n}",
                store_name,
                search_path,
                cpus=roles.samplers.cpus,
                gpus=roles.samplers.gpus,
            )
            for n in range(roles.samplers.workers)
        ]
        scorers = [
            self._start(actors.ScorerActor, run, search_path, cpus=roles.scorers.cpus, gpus=roles.scorers.gpus)
            for _ in range(roles.scorers.workers)
        ]
        self._await_ready(run)
        self.learner = RayLearner(learner, store, self.timeout)
        self.samplers = RaySamplers(WorkerPool("sampler", samplers, _sample))
        self.scorers = RayScorers(WorkerPool("scorer", scorers, _score))

    def _start(self, cls: type, *arguments: Any, cpus: float, gpus: float, name: str | None = None) -> Any:
        made = ray.remote(cls).options(num_cpus=cpus, num_gpus=gpus, max_restarts=-1, name=name)
        actor = made.remote(*arguments, gpus=gpus)
        self.actors.append(actor)
        return actor

    def _await_ready(self, run: config.Run) -> None:
        pending = {actor.ready.remote(): actor for actor in self.actors}
        deadline = time.monotonic() + run.workers.start_timeout
        while pending:
            done, _ = ray.wait(list(pending), timeout=max(0.0, deadline - time.monotonic()))
            if not done:
                self.close()
                raise ClusterError(
                    f"{len(pending)} of {len(self.actors)} workers are not ready after {run.workers.start_timeout:g} s "
                    f"(workers.start_timeout); asked for was {asked_for(run.workers)}, free is {_free()}"
                )
            for reference in done:
                pending.pop(reference)
                try:
                    ray.get(reference)
                except exceptions.RayError as error:
                    self.close()
                    raise reraise(error, "a worker to start") from error

    def wait(self, timeout: float) -> None:
        running = [*self.samplers.pool.references(), *self.scorers.pool.references()]
        if self.learner.running is not None:
            running.append(self.learner.running)
        if running:
            ray.wait(running, timeout=timeout)
        else:
            time.sleep(min(timeout, 0.01))

    def fetch(self, handle: Handle) -> np.ndarray:
        try:
            images: np.ndarray = ray.get(handle.reference, timeout=self.timeout)
        except exceptions.GetTimeoutError:
            raise ClusterError(f"waited {self.timeout:g} s (workers.task_timeout) for images") from None
        except exceptions.RayError as error:
            raise reraise(error, "images") from error
        return images

    def faults(self) -> list[str]:
        return [*self.samplers.pool.faults(), *self.scorers.pool.faults()]

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        for actor in self.actors:
            ray.kill(actor, no_restart=True)
        if self.owns_ray:
            ray.shutdown()


def connect(run: config.Run, say: Callable[[str], None] = lambda line: None) -> RayStages:
    """Start a run's workers on the cluster that RAY_ADDRESS names, or on one of this machine's own.

    Raises ClusterError when the cluster cannot be reached, is too small, or its workers are not ready in time.
    """
    owns_ray = not ray.is_initialized()
    if owns_ray:
        address = os.environ.get("RAY_ADDRESS", "local")
        try:
            context = ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, ValueError, RuntimeError, exceptions.RayError) as error:
            raise ClusterError(
                f"no Ray cluster at {address!r}: {error}; unset RAY_ADDRESS to start one on this machine"
            ) from error
        if context.dashboard_url:
            say(f"Ray dashboard: http://{context.dashboard_url}")
    wanted, there = asked_for(run.workers), ray.cluster_resources()
    short = {name: (amount, there.get(name, 0.0)) for name, amount in wanted.items() if amount > there.get(name, 0.0)}
    if short:
        if owns_ray:
            ray.shutdown()
        detail = "; ".join(f"{name}: asked for {ask:g}, the cluster has {has:g}" for name, (ask, has) in short.items())
        raise ClusterError(f"the cluster is too small: {detail}; lower workers.*.workers, cpus or gpus")
    return RayStages(run, owns_ray=owns_ray)


def asked_for(workers: config.Workers) -> dict[str, float]:
    """What all workers together reserve."""
    pools = (workers.samplers, workers.scorers)
    return {
        "CPU": workers.learner.cpus + sum(pool.workers * pool.cpus for pool in pools),
        "GPU": workers.learner.gpus + sum(pool.workers * pool.gpus for pool in pools),
    }


def _free() -> dict[str, float]:
    free = ray.available_resources()
    return {name: free.get(name, 0.0) for name in ("CPU", "GPU")}


def _sample(actor: Any, task: Task) -> tuple[Any, Callable[[Any], Rollout]]:
    made, trajectory, images = actor.sample.options(num_returns=3).remote(task)
    wanted = task.purpose == "train"

    def result(info: actors.Made) -> Rollout:
        return Rollout(
            task=task,
            trajectory=Handle(reference=trajectory) if wanted else None,
            images=Handle(reference=images),
            checksum=info.checksum,
            seconds=info.seconds,
            worker=info.worker,
        )

    return made, result


def _score(actor: Any, rollout: Rollout) -> tuple[Any, Callable[[Any], Scored]]:
    reference = actor.score.remote(rollout.task, rollout.images.reference)

    def result(found: tuple[dict[str, list[float]], dict[str, str], float]) -> Scored:
        scores, failures, seconds = found
        return Scored(rollout=rollout, scores=scores, failures=failures, seconds=seconds)

    return reference, result
