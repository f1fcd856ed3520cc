"""Callbacks: functions of the user's that see each record of a run, and may ask it to stop."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Final

from pcpo_ray.data.records import EvaluationRecord, StepRecord


class Answer(enum.Enum):
    """The answer of a callback that ends the run."""

    STOP = "stop"


STOP: Final = Answer.STOP
"""The answer that stops a run, with a checkpoint. Whatever else a callback returns is ignored."""

Callback = Callable[[StepRecord | EvaluationRecord], object]
"""A function of each training step and each evaluation, called in the driver once they are on record."""
