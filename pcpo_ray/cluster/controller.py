"""The named actor through which others talk to a run: what they ask for waits here until the driver takes it.

It ends with the driver. `find(run)` is the other end.
"""

import time
from collections.abc import Mapping
from typing import Any

import ray
from ray import exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pcpo_ray.errors import ClusterError
from pcpo_ray.stages import Request

NAMESPACE = "pcpo_ray"

RELEASE = 5.0
"""Seconds in which the name of a run that has ended a moment ago is free again."""


class Controller:
    """Holds a run's requests and its last status."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.last: dict[str, Any] = {}

    def ask(self, request: Request) -> None:
        """Have the driver do something, within seconds."""
        self.requests.append(request)

    def exchange(self, status: Mapping[str, Any]) -> list[Request]:
        """The driver's: what it says of the run, for what it was asked since the last call."""
        self.last = dict(status)
        asked, self.requests = self.requests, []
        return asked

    def status(self) -> dict[str, Any]:
        return self.last


class Desk:
    """The driver's side: starts the controller on the driver's own node, starts it again where it died.

    Never waits for it once it was there. Raises ClusterError where another run has its name.
    """

    def __init__(self, run: str) -> None:
        self.run = run
        self.pending: ray.ObjectRef | None = None
        deadline = time.monotonic() + RELEASE
        while (actor := self._started()) is None:
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"a run named {run!r} is going on in this cluster; stop it, or give this one another name"
                )
            time.sleep(0.2)
        self.actor: Any = actor

    def _started(self) -> Any:
        """A new controller; None where its name is not free."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        made = ray.remote(Controller).options(
            name=self.run, namespace=NAMESPACE, num_cpus=0, max_restarts=0, scheduling_strategy=here
        )
        try:
            return made.remote()
        except ValueError:
            return None

    def exchange(self, status: Mapping[str, Any]) -> list[Request]:
        """What was asked for by the exchange before this one; [] while that is under way."""
        found: list[Request] = []
        if self.pending is not None:
            if not ray.wait([self.pending], timeout=0)[0]:
                return []
            try:
                found = ray.get(self.pending)
            except exceptions.RayError:  # what it was asked is lost with it, and asking again is easy
                self.actor = None
            self.pending = None
        if self.actor is None:  # the name is free some time after the death
            self.actor = self._started()
        if self.actor is not None:
            self.pending = self.actor.exchange.remote(status)
        return found

    def close(self) -> None:
        if self.actor is not None:
            ray.kill(self.actor, no_restart=True)


def find(run: str) -> Any:
    """A run's controller. Raises ClusterError that names the runs there are."""
    try:
        return ray.get_actor(run, namespace=NAMESPACE)
    except ValueError:
        named = ray.util.list_named_actors(all_namespaces=True)
        there = sorted(actor["name"] for actor in named if actor["namespace"] == NAMESPACE)
        raise ClusterError(f"no run named {run!r} is going on in this cluster; there are {there or 'none'}") from None
