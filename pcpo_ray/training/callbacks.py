"""Callbacks: functions of the user's that see each record of a run, and may ask it to stop."""

from __future__ import annotations

import contextlib
import enum
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from pcpo_ray.data.records import EvaluationRecord, StepRecord


class Answer(enum.Enum):
    """The answer of a callback that ends the run."""

    STOP = "stop"


STOP: Final = Answer.STOP
"""The answer that stops a run, with a checkpoint. Whatever else a callback returns is ignored."""

Callback = Callable[[StepRecord | EvaluationRecord], object]
"""A function of each training step and each evaluation, called in the driver once they are on record."""


class Audience:
    """The callbacks of a run, and the records that they have still to see."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.callbacks = callbacks
        self.untold: deque[StepRecord | EvaluationRecord] = deque()

    def tell(self) -> bool:
        """Have every callback see every record; return whether one has answered STOP."""
        stop = False
        while self.untold:
            record = self.untold.popleft()
            for callback in self.callbacks:
                with _working_folder_kept():
                    stop |= callback(record) is STOP
        return stop


@contextlib.contextmanager
def _working_folder_kept() -> Iterator[None]:
    """Afterwards the working folder is as it was: the run's own paths may start there."""
    try:
        here = os.getcwd()
    except FileNotFoundError:  # deleted meanwhile
        yield
        return
    try:
        yield
    finally:
        os.chdir(here)
