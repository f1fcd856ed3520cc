"""The named actor between a run and those who talk to it: requests wait here until the driver takes them.

It prints the driver's status into its log, from which the dashboard gives it to whoever asks over HTTP (dashboard.py).
Every client imports this module: it is light, so that a command answers at once.
"""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from pcpo_ray.data.requests import Request
from pcpo_ray.runs.lines import text

MARK = "pcpo_ray status: "
"""The beginning of a line in the controller's log that holds a status."""

PRINTED = 15.0
"""Seconds from one status in the log to the next; a new step, state or checkpoint is there at once."""

NOTABLE = ("state", "step", "evaluated_step", "checkpoint", "error", "samplers", "scorers")

WATCHED = 5.0
"""Seconds within which a client that asked for the status counts as still watching."""


class Controller:
    """Holds a run's requests and its last status. `now` is its clock, in seconds."""

    def __init__(self, status: Mapping[str, Any], now: Callable[[], float] = time.monotonic) -> None:
        self.now = now
        self.requests: list[Request] = []
        self.asked = self.printed = -math.inf
        self.notable: tuple[Any, ...] = ()
        self.tell(status)

    def ask(self, request: Request) -> None:
        """Have the driver do something, within seconds."""
        self.requests.append(request)

    def exchange(self, status: Mapping[str, Any]) -> list[Request]:
        """Called by the driver: take its status, and hand over the requests since the last call."""
        self.tell(status)
        asked, self.requests = self.requests, []
        return asked

    def tell(self, status: Mapping[str, Any]) -> None:
        """Called by the driver: take its status."""
        self.last, self.said = dict(status), self.now()
        notable = tuple(status.get(name) for name in NOTABLE)
        if notable != self.notable or self.said - self.printed > PRINTED:
            self.notable, self.printed = notable, self.said
            kept = {name: value for name, value in status.items() if name != "events"}
            print(f"{MARK}{text({**kept, 'time': time.time()})}", flush=True)

    def status(self) -> dict[str, Any]:
        """Return the driver's last status, and how many seconds ago that was (`age`)."""
        self.asked = self.now()
        return {**self.last, "age": self.asked - self.said}

    def heard(self) -> bool:
        """Tell whether everybody who watches has heard the driver's last status."""
        return self.asked >= self.said or self.now() - self.asked > WATCHED
