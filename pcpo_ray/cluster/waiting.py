"""Waiting for Ray's answers, without keeping the driver busy where thousands of them are awaited."""

import time
from collections.abc import Sequence

import ray

CROWD = 200
"""References from which a look at all of them is dear: Ray goes through every one, each time."""

REST, LONGEST_REST = 3.0, 0.25
"""The driver's rest beside a crowd, in times of what it has worked, and the most seconds of it."""


class Waiter:
    """Waits for references. Beside a crowd the driver rests first, and takes what came meanwhile in one look.

    A reference wakes the driver once: what is there and is left where it is, as the answer of a rank that is done
    before the others, would otherwise wake it again at once, and again.
    """

    def __init__(self) -> None:
        self.waited = time.monotonic()
        self.there: set[ray.ObjectRef] = set()

    def wait(self, references: Sequence[ray.ObjectRef], timeout: float) -> None:
        """Wait until one of the references is there that was not before, or for so many seconds."""
        if len(references) > CROWD:
            time.sleep(min(REST * (time.monotonic() - self.waited), LONGEST_REST, timeout))
        self.there.intersection_update(references)
        if awaited := [reference for reference in references if reference not in self.there]:
            self.there.update(ray.wait(awaited, timeout=timeout)[0])
        else:
            time.sleep(timeout)
        self.waited = time.monotonic()
