"""Sizing: the number of workers with which nobody waits for long, from the measured cost of a step."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

WORTH = 0.9
"""One worker more is worth it where the step then takes at most this fraction of its present time."""
SPARE = 1.03
"""One worker less is as good where the step then takes at most this multiple of its present time."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One step as it was measured: seconds of work, added up over a role's workers, and the learner's seconds.

    The work of a role consists of `groups`; one worker does a group alone.
    """

    work: Mapping[str, float]
    learning: float
    groups: int
    overlapped: bool
    """True where the next batch is sampled while this one is learned."""
    ranks: int = 0
    """The learner's ranks that sample too, while they do not learn."""

    def seconds(self, sizes: Mapping[str, int]) -> float:
        """Predict the step's seconds with so many workers a role: sampling and scoring go on side by side."""
        workers = {role: count + self.ranks * (role == "samplers") for role, count in sizes.items()}
        each = {
            role: math.ceil(self.groups / workers[role]) * work / self.groups
            for role, work in self.work.items()
            if workers[role]
        }
        if not self.overlapped:
            return max(each.values(), default=0.0) + self.learning
        if self.ranks and "samplers" in each:  # they have so much less time to sample as they learn
            each["samplers"] += self.ranks * self.learning / workers["samplers"]
        return max(*each.values(), self.learning)


def better(seen: Seen, sizes: Mapping[str, int], bounds: Mapping[str, tuple[int, int]]) -> dict[str, int]:
    """Choose the next sizes: at most one worker more or less a role, between the role's (least, most).

    The learner waits for rollouts: grow. Workers wait to be admitted: shrink.
    """
    found = dict(sizes)
    now = seen.seconds(found)
    for role, (least, most) in bounds.items():
        more, less = {**found, role: found[role] + 1}, {**found, role: found[role] - 1}
        # groups are whole: a step may take two workers more to be shorter
        further = {**found, role: min(most, math.ceil(seen.groups / (math.ceil(seen.groups / found[role]) - 1 or 1)))}
        if found[role] < most and min(seen.seconds(more), seen.seconds(further)) <= WORTH * now:
            found = more
        elif found[role] > least and seen.seconds(less) <= SPARE * now:
            found = less
    return found
