"""The driver's end of the talk with those who ask how a run is, or ask something of it.

Their end is `pcpo_ray.operate.caller`; between both is a named actor, which ends with the driver.
"""

import contextlib
import time
from collections.abc import Mapping
from typing import Any

import ray
from ray import exceptions

from pcpo_ray.errors import ClusterError
from pcpo_ray.operate.controller import Controller
from pcpo_ray.request import NAMESPACE, Request

RELEASE = 5.0
"""Seconds in which the name of a run that has ended a moment ago is free again."""

FAREWELL = 5.0
"""Seconds that an ended run waits for who watches it to have heard so."""


class Desk:
    """The driver's side: starts the controller, starts it again where it died, and never waits for it."""

    def __init__(self, run: str) -> None:
        self.run = run
        self.pending: ray.ObjectRef | None = None
        self._start()

    def _start(self) -> None:
        made = ray.remote(Controller).options(name=self.run, namespace=NAMESPACE, num_cpus=0, max_restarts=0)
        deadline = time.monotonic() + RELEASE
        while True:
            try:
                self.actor = made.remote()
                return
            except ValueError as error:  # the name is taken
                if time.monotonic() > deadline:
                    raise ClusterError(
                        f"a run named {self.run!r} is going on in this cluster; stop it, or give this one another name"
                    ) from error
                time.sleep(0.2)

    def exchange(self, status: Mapping[str, Any]) -> list[Request]:
        """What was asked for by the exchange before this one; [] while that is under way."""
        found: list[Request] = []
        if self.pending is not None:
            if not ray.wait([self.pending], timeout=0)[0]:
                return []
            try:
                found = ray.get(self.pending)
            except exceptions.RayError:  # what it was asked is lost with it, and asking again is easy
                self._start()
        self.pending = self.actor.exchange.remote(status)
        return found

    def tell(self, status: Mapping[str, Any]) -> None:
        """Say how the run is; nothing is taken that was asked."""
        self.actor.tell.remote(status)

    def end(self, status: Mapping[str, Any]) -> None:
        """Say the last of a run; returns when whoever watches it has heard that."""
        deadline = time.monotonic() + FAREWELL
        with contextlib.suppress(exceptions.RayError):  # nobody can be told any more
            ray.get(self.actor.tell.remote(status), timeout=FAREWELL)
            while not ray.get(self.actor.heard.remote(), timeout=FAREWELL) and time.monotonic() < deadline:
                time.sleep(0.1)

    def close(self) -> None:
        ray.kill(self.actor, no_restart=True)
