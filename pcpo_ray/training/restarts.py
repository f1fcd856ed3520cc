"""Restarts: the bookkeeping of lost learners, which tells an accident from a loss that comes back."""

from collections import Counter

from pcpo_ray.errors import LearnerLostError

MAX_RESTARTS = 5
"""The number of times that a thing may be lost before the run gives up."""

AT_ONE_STEP = 3
"""The number of losses at one step that end the run: a loss that comes back there is no accident."""


class Restarts:
    """Counts the learners lost since a newer checkpoint was made."""

    def __init__(self) -> None:
        self.count = 0
        self.at_step: Counter[int] = Counter()
        self.furthest = -1
        """The newest checkpoint ever made. Making one again after a loss is no progress."""

    def restored(self, step: int) -> None:
        """Note that the run continues from the checkpoint of a step."""
        self.furthest = max(self.furthest, step)

    def saved(self, step: int) -> None:
        """Note a checkpoint: one that is newer than all before forgives the losses so far."""
        if step > self.furthest:
            self.furthest = step
            self.count, self.at_step = 0, Counter()

    def add(self, error: LearnerLostError, step: int) -> None:
        """Count a learner lost on the way to a step. Raises LearnerLostError where that has happened too often."""
        self.count += 1
        self.at_step[step] += 1
        here = self.at_step[step]
        if here < AT_ONE_STEP and self.count <= MAX_RESTARTS:
            return
        often = f"{here} times at step {step}" if here >= AT_ONE_STEP else f"{self.count} times"
        raise LearnerLostError(
            f"{error}; the learner was lost {often} with no newer checkpoint made meanwhile "
            f"(the newest is that of step {self.furthest}), so the run gives up"
            if self.furthest >= 0
            else f"{error}; the learner was lost {often} before the first checkpoint, so the run gives up"
        ) from error
