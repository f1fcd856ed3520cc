"""The named actor between a run and those who talk to it: what they ask waits here until the driver takes it.

Whoever finds it imports this module: it is light, so that a command answers at once.
"""

import math
import time
from collections.abc import Mapping
from typing import Any

from pcpo_ray.data.requests import Request

WATCHED = 5.0
"""Seconds since somebody last asked for the status, in which he is taken to ask again."""


class Controller:
    """Holds a run's requests and its last status."""

    def __init__(self, status: Mapping[str, Any]) -> None:
        self.requests: list[Request] = []
        self.asked = -math.inf
        self.tell(status)

    def ask(self, request: Request) -> None:
        """Have the driver do something, within seconds."""
        self.requests.append(request)

    def exchange(self, status: Mapping[str, Any]) -> list[Request]:
        """The driver's: what it says of the run, for what it was asked since the last call."""
        self.tell(status)
        asked, self.requests = self.requests, []
        return asked

    def tell(self, status: Mapping[str, Any]) -> None:
        """The driver's: what it says of the run."""
        self.last, self.said = dict(status), time.monotonic()

    def status(self) -> dict[str, Any]:
        """The driver's last word, and how many seconds ago that was (`age`)."""
        self.asked = time.monotonic()
        return {**self.last, "age": self.asked - self.said}

    def heard(self) -> bool:
        """Whether nobody watches who has not heard the driver's last word."""
        return self.asked >= self.said or time.monotonic() - self.asked > WATCHED
