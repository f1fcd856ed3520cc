"""Starting and ending actors, what they reserve of the cluster, and waiting for their results."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray import exceptions
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from pcpo_ray import config
from pcpo_ray.cluster.actors import HEALTH
from pcpo_ray.cluster.failures import reraise
from pcpo_ray.errors import ClusterError
from pcpo_ray.process.deadlines import within

BEAT = 2.0
"""Seconds from one sign of life to the next."""

RESERVED, GIVEN_BACK, MADE = 60.0, 5.0, 8.0
"""Seconds in which the cluster's head notes that places are asked for, given back, or that an actor is to be made.

Ray itself waits for ever. An actor is asked for in the midst of a run, which ends by itself where its head is gone.
"""


@dataclass(frozen=True, kw_only=True)
class Launcher:
    """Starts a run's actors, with what its config reserves for each role. `answers` tells whether the head does."""

    run: config.Run
    answers: Callable[[], bool] = lambda: True
    search_path: str = field(default_factory=lambda: str(Path.cwd()))

    def make(self, cls: type, role: config.Role | config.LearnerRole, name: str, *more: Any, **options: Any) -> Any:
        """Make an actor that has still to start.

        Ray is not to restart it: its maker replaces it, which is the same as making one more. Raises ClusterError
        where the cluster's head does not answer.
        """
        made = ray.remote(concurrency_groups={HEALTH: 1})(cls).options(
            num_cpus=role.cpus,
            num_gpus=role.gpus,
            resources=dict(role.resources) or None,
            accelerator_type=role.accelerator,
            max_restarts=0,
            **options,
        )
        try:
            return within(MADE, lambda: made.remote(self.run, name, self.search_path, *more))
        except TimeoutError:  # should it be made all the same, it ends as nobody holds it
            raise ClusterError(
                f"the head of the Ray cluster did not answer for {MADE:g} s, when asked for {name}"
            ) from None

    def reserve(self, role: config.LearnerRole) -> "Placement":
        """Reserve places for all of the learner's ranks or for none, close together; Ray gives them when it can.

        Raises ClusterError where the cluster's head does not answer.
        """
        if role.ranks == 1:
            return Placement(None)
        bundle = {"CPU": role.cpus, "GPU": role.gpus, **role.resources}
        if role.accelerator is not None:
            bundle[f"accelerator_type:{role.accelerator}"] = 0.001
        asked = {name: amount for name, amount in bundle.items() if amount > 0}
        try:
            return Placement(within(RESERVED, lambda: placement_group([asked] * role.ranks, strategy="PACK")))
        except TimeoutError:
            raise ClusterError(
                f"the head of the Ray cluster did not answer for {RESERVED:g} s, when asked for the learner's places"
            ) from None


@dataclass(frozen=True)
class Placement:
    """The places that Ray has reserved for the learner's ranks (None: a single rank asks for itself)."""

    group: PlacementGroup | None

    def options(self, index: int) -> dict[str, Any]:
        """Return the options that put the actor of a rank in its place."""
        if self.group is None:
            return {}
        strategy = PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=index)
        return {"scheduling_strategy": strategy}

    def close(self) -> None:
        if self.group is not None:
            with contextlib.suppress(TimeoutError):  # a head that is gone has no places to give back
                within(GIVEN_BACK, lambda: remove_placement_group(self.group))


def asked_for(workers: config.Workers) -> dict[str, float]:
    """Add up what all workers together reserve at the start."""
    counts: list[tuple[config.Role | config.LearnerRole, int]] = [
        *((pool, pool.workers) for pool in (workers.samplers, workers.scorers)),
        (workers.learner, workers.learner.ranks),
    ]
    asked = {
        "CPU": sum(count * role.cpus for role, count in counts),
        "GPU": sum(count * role.gpus for role, count in counts),
    }
    for name in {name for role, _ in counts for name in role.resources}:
        asked[name] = sum(count * role.resources.get(name, 0.0) for role, count in counts)
    return asked


def short_of(wanted: Mapping[str, float], there: Mapping[str, float]) -> str:
    """Describe the resources that a cluster has less of than is asked for; empty where it has enough."""
    short = [(name, amount, there.get(name, 0.0)) for name, amount in wanted.items() if amount > there.get(name, 0.0)]
    return "; ".join(f"{name}: asked for {asked:g}, the cluster has {has:g}" for name, asked, has in short)


def room_for(role: config.Role, workers: int, unplaced: int, free: Mapping[str, float]) -> str:
    """Describe the room for a role's workers while some are unplaced; empty where what is free is enough for one."""
    needs = {"CPU": role.cpus, "GPU": role.gpus, **role.resources}
    if role.accelerator is not None:
        needs[f"accelerator_type:{role.accelerator}"] = 0.001
    short = [(name, need, free.get(name, 0.0)) for name, need in needs.items() if need > free.get(name, 0.0)]
    if not unplaced or not short:
        return ""
    wait = ", ".join(f"{name}: {need:g} each, {there:g} free" for name, need, there in short)
    return f"room for {workers - unplaced}; {unplaced} wait for {wait}"


def get(reference: ray.ObjectRef, timeout: float, awaited: str) -> Any:
    """Wait for a result.

    Raises ClusterError at the deadline, this package's error for what went wrong, and ObjectLostError.
    """
    try:
        return ray.get(reference, timeout=timeout)
    except exceptions.GetTimeoutError:
        raise ClusterError(f"waited {timeout:g} s (workers.task_timeout) for {awaited}") from None
    except exceptions.ObjectLostError:
        raise
    except exceptions.RayError as error:
        raise reraise(error, awaited) from error


def draining_nodes() -> set[str]:
    """List the nodes that were told to leave (a spot machine's notice, a rolling update).

    Ray has no public way to ask.
    """
    return set(ray._private.state.state.get_draining_nodes())


def end(actors: Sequence[Any]) -> None:
    """End actors at once."""
    for actor in actors:
        ray.kill(actor, no_restart=True)
