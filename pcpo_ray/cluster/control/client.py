"""Talking to a run that goes on, by its name: every call has a deadline."""

import time
from collections.abc import Callable
from typing import Any

import ray
from ray import exceptions

from pcpo_ray.cluster.control.attach import attach
from pcpo_ray.data.requests import NAMESPACE, Request
from pcpo_ray.errors import ClusterError, EndedError

ANSWER = 30.0
"""Seconds within which a run's controller must answer."""

LOOK = 0.5
"""Seconds from one look at a run to the next, while something is waited for."""


class Caller:
    """A client of a run in the cluster at `address`. Raises ClusterError that names the runs there are."""

    def __init__(self, run: str, address: str) -> None:
        self.run = run
        attach(address)
        try:
            self.controller = ray.get_actor(run, namespace=NAMESPACE)
        except ValueError:
            named = ray.util.list_named_actors(all_namespaces=True)
            there = sorted(actor["name"] for actor in named if actor["namespace"] == NAMESPACE)
            where = ray.get_runtime_context().gcs_address
            raise ClusterError(
                f"no run named {run!r} is going on in the cluster at {where}; there are {', '.join(there) or 'none'}"
            ) from None

    def status(self) -> dict[str, Any]:
        """Return the run's last status, as plain data, and its `age` in seconds. Raises EndedError."""
        found: dict[str, Any] = self._get(self.controller.status.remote())
        return found

    def ask(self, request: Request) -> None:
        """Leave a request with the run. Raises EndedError."""
        self._get(self.controller.ask.remote(request))

    def wait(self, done: Callable[[dict[str, Any]], bool], timeout: float, awaited: str) -> dict[str, Any]:
        """Wait for the first status for which `done` holds. Raises ClusterError at the deadline, and EndedError."""
        deadline = time.monotonic() + timeout
        while not done(status := self.status()):
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"waited {timeout:g} s for {awaited}; {self.run} was heard of {status['age']:.0f} s ago and is "
                    f"at step {status.get('step')}, {status.get('state')}; it may still do so, see pcpo-ray status"
                )
            time.sleep(LOOK)
        return status

    def _get(self, reference: ray.ObjectRef) -> Any:
        try:
            return ray.get(reference, timeout=ANSWER)
        except exceptions.ActorUnavailableError:
            raise ClusterError(
                f"the controller of {self.run} was out of reach for a moment, and may have heard the request or not: "
                "see pcpo-ray status, then ask again"
            ) from None
        except exceptions.RayActorError:
            raise EndedError(f"{self.run} has ended") from None
        except exceptions.GetTimeoutError:
            raise ClusterError(f"the controller of {self.run} did not answer for {ANSWER:g} s") from None
