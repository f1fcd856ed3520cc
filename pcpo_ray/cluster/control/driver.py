"""The driver's end of the talk with those who ask how a run is, or ask something of it.

Their end is `pcpo_ray.cluster.control.client`; between both is a named actor, which ends with the driver.
"""

import contextlib
import time
from collections.abc import Mapping
from typing import Any

import ray
from ray import exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pcpo_ray.cluster.control.controller import Controller
from pcpo_ray.data.requests import NAMESPACE, Request
from pcpo_ray.errors import ClusterError

RELEASE = 5.0
"""Seconds within which the name of a run that has just ended is free again."""

FAREWELL = 5.0
"""Seconds that an ended run waits until those who watch it have heard of its end."""


class DriverControl:
    """The driver's end: starts the controller on the driver's own node, and starts it again where it died.

    Once the controller was there, nothing waits for it. `status` is the first one that clients see. Raises ClusterError
    where another run has the run's name.
    """

    def __init__(self, run: str, status: Mapping[str, Any]) -> None:
        self.run, self.last = run, status
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
        """Start a new controller; None where its name is not free."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        made = ray.remote(Controller).options(
            name=self.run, namespace=NAMESPACE, num_cpus=0, max_restarts=0, scheduling_strategy=here
        )
        try:
            return made.remote(self.last)
        except ValueError:
            return None

    def exchange(self, status: Mapping[str, Any]) -> list[Request]:
        """Return what was asked for by the exchange before this one; [] while that is under way."""
        found: list[Request] = []
        self.last = status
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

    def end(self, status: Mapping[str, Any]) -> None:
        """Tell how the run has ended; return once those who watch it have heard that."""
        if self.actor is None:
            return
        deadline = time.monotonic() + FAREWELL
        with contextlib.suppress(exceptions.RayError):  # nobody can be told any more
            ray.get(self.actor.tell.remote(status), timeout=FAREWELL)
            while not ray.get(self.actor.heard.remote(), timeout=FAREWELL) and time.monotonic() < deadline:
                time.sleep(0.1)

    def close(self) -> None:
        if self.actor is not None:
            ray.kill(self.actor, no_restart=True)
