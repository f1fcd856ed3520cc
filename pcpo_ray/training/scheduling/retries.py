"""Whose failure it was, how often it may be tried again, and how long to wait before."""

import enum

from pcpo_ray.errors import PcpoError


class Blame(enum.Enum):
    """Whose failure: a worker's is tried elsewhere, the data's stops the run. Deaths are no error of the work."""

    WORKER = "worker"
    DATA = "data"


def blame(error: BaseException) -> Blame:
    """An error of the work itself: this package's own say what is wrong with the input, any other may be the worker's.

    A worker whose GPU is broken raises RuntimeErrors that say nothing about the task.
    """
    return Blame.DATA if isinstance(error, PcpoError) else Blame.WORKER


class Backoff:
    """Seconds to wait before the next try: none before the first, then `first`, doubled up to `longest`."""

    def __init__(self, first: float = 1.0, longest: float = 60.0) -> None:
        self.first, self.longest = first, longest
        self.failures = 0

    def failed(self) -> None:
        self.failures += 1

    def succeeded(self) -> None:
        self.failures = 0

    @property
    def seconds(self) -> float:
        if self.failures < 2:
            return 0.0
        return min(self.longest, self.first * 2.0 ** min(self.failures - 2, 30))
