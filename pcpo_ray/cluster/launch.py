"""Starting actors, asking whether they live, and what Ray's errors mean for a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import exceptions

from pcpo_ray import config
from pcpo_ray.cluster.actors import HEALTH
from pcpo_ray.errors import ClusterError, PcpoError

BEAT = 2.0
"""Seconds from one sign of life to the next."""

GONE = (exceptions.ActorDiedError, exceptions.ActorUnavailableError, exceptions.WorkerCrashedError)
"""What a call to an actor that is no more raises."""


@dataclass(frozen=True, kw_only=True)
class Launcher:
    """Starts a run's actors, with what its config reserves for each role."""

    run: config.Run
    search_path: str = str(Path.cwd())

    def start(self, cls: type, role: config.Role | config.LearnerRole, name: str) -> tuple[Any, ray.ObjectRef]:
        """An actor's handle and what tells that it has started, when the cluster has room for it.

        Ray is not to restart it: whoever started it replaces it, which is the same as starting one more.
        """
        made = ray.remote(concurrency_groups={HEALTH: 1})(cls).options(
            num_cpus=role.cpus,
            num_gpus=role.gpus,
            resources=dict(role.resources) or None,
            accelerator_type=role.accelerator,
            max_restarts=0,
        )
        actor = made.remote(self.run, name, self.search_path)
        return actor, actor.start.remote()


def cause_of(error: exceptions.RayError) -> BaseException:
    """What a worker raised, where it was the worker that raised; else Ray's own error."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, BaseException) else error


def reraise(error: exceptions.RayError, awaited: str) -> PcpoError:
    """The error as one of this package's: the worker's own where it raised one, else what Ray says of the cluster."""
    cause = cause_of(error)
    return cause if isinstance(cause, PcpoError) else ClusterError(f"while waiting for {awaited}: {error}")


def brief(error: BaseException) -> str:
    """One line of an error that may have many."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


def asked_for(workers: config.Workers) -> dict[str, float]:
    """What all workers together reserve at the start."""
    pools = (workers.samplers, workers.scorers)
    asked = {
        "CPU": workers.learner.cpus + sum(pool.workers * pool.cpus for pool in pools),
        "GPU": workers.learner.gpus + sum(pool.workers * pool.gpus for pool in pools),
    }
    for name in {name for role in (*pools, workers.learner) for name in role.resources}:
        each = [(role.resources.get(name, 0.0), getattr(role, "workers", 1)) for role in (*pools, workers.learner)]
        asked[name] = sum(amount * count for amount, count in each)
    return asked


def short_of(wanted: Mapping[str, float], there: Mapping[str, float]) -> str:
    """What a cluster has less of than is asked for, in words; empty where it has enough."""
    short = [(name, amount, there.get(name, 0.0)) for name, amount in wanted.items() if amount > there.get(name, 0.0)]
    return "; ".join(f"{name}: asked for {asked:g}, the cluster has {has:g}" for name, asked, has in short)


def get(reference: ray.ObjectRef, timeout: float, awaited: str) -> Any:
    """A result. Raises ClusterError at the deadline, and this package's error for what went wrong."""
    try:
        return ray.get(reference, timeout=timeout)
    except exceptions.GetTimeoutError:
        raise ClusterError(f"waited {timeout:g} s (workers.task_timeout) for {awaited}") from None
    except exceptions.RayError as error:
        raise reraise(error, awaited) from error


def draining_nodes() -> set[str]:
    """Nodes that were told to leave (a spot machine's notice, a rolling update). Ray has no public way to ask."""
    return set(ray._private.state.state.get_draining_nodes())


def end(actors: Sequence[Any]) -> None:
    """End actors at once."""
    for actor in actors:
        ray.kill(actor, no_restart=True)
