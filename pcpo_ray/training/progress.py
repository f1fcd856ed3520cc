"""Progress: the state of a run, which the loop moves on, and which its evaluator, control and checkpointer share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pcpo_ray.data.records import EvaluationRecord, State, StepRecord
from pcpo_ray.data.types import Task


@dataclass
class Progress:
    """The state of a run; everything but `max_staleness` starts empty."""

    max_staleness: int
    """The number of versions that a batch may be behind; an operator may change it."""
    paced: bool = False
    """True once `max_staleness` is this process's own, which no checkpoint replaces any more."""
    step: int = 0
    """Updates done: the version of the newest weights."""
    begun: dict[int, Sequence[Task]] = field(default_factory=dict)
    """The batches that were begun and are not learned yet, by step."""
    saved: int | None = None
    """The step of the newest checkpoint that belongs to the present weights."""
    recovering: bool = False
    """True from the loss of a learner until a new one has taken over the weights of the step."""
    state: State = "starting"
    error: str = ""
    """The reason for the end of a run that failed, or that its monitors ended."""
    stopping: bool = False
    """True once the run was asked to stop."""
    learners_lost: int = 0
    micro_batch: int | None = None
    """The learner's micro-batch, if it chose one (optimizer.micro_batch=auto)."""
    last_step: StepRecord | None = None
    last_evaluation: EvaluationRecord | None = None
    unwritten: list[Mapping[str, Any]] = field(default_factory=list)
    """Rows that could not be recorded; the checkpoint that ends the run keeps them."""

    @property
    def oldest(self) -> int:
        """The oldest version that a task under way asks for."""
        return min([self.step, *(task.version for tasks in self.begun.values() for task in tasks)])

    @property
    def kept(self) -> int:
        """The step whose weights there are; while a lost learner is replaced, that of the newest checkpoint."""
        return (self.saved or 0) if self.recovering else self.step

    @property
    def unsaved(self) -> bool:
        """True where the learner has weights that no checkpoint holds."""
        return not self.recovering and self.saved != self.step
