"""Retries: who is to blame for a failure, and how long to wait before the next try."""

import enum
import math

from pcpo_ray.errors import PcpoError


class Blame(enum.Enum):
    """The one to blame: a worker's failure is retried elsewhere, bad data stops the run.

    A dead worker is handled before this.
    """

    WORKER = "worker"
    DATA = "data"


def blame(error: BaseException) -> Blame:
    """Blame an error of the work: this package's own errors mean bad input, any other may be the worker's fault.

    A worker whose GPU is broken raises RuntimeErrors that say nothing about the task.
    """
    return Blame.DATA if isinstance(error, PcpoError) else Blame.WORKER


class Backoff:
    """The seconds to wait before the next try: none before the first, then `first`, doubled up to `longest`.

    Nobody is started before `until`, so who fails before then, as with the same machine, is of the try that failed.
    """

    def __init__(self, first: float = 1.0, longest: float = 60.0) -> None:
        self.first, self.longest = first, longest
        self.failures = self._tries = 0
        self.until = -math.inf

    def failed(self, now: float) -> None:
        self.failures += 1
        if now >= self.until:
            self._tries += 1
            self.until = now + self.seconds

    def succeeded(self) -> None:
        self.failures = self._tries = 0

    @property
    def seconds(self) -> float:
        if self._tries < 2:
            return 0.0
        return min(self.longest, self.first * 2.0 ** min(self._tries - 2, 30))
