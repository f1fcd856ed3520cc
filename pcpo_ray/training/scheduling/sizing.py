"""Sizing: how many workers keep nobody waiting for long, from what a step was seen to cost."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

WORTH = 0.9
"""One worker more is worth it where the step then takes at most this share of what it takes now."""
SPARE = 1.03
"""One worker less is as good where the step then takes at most this multiple of what it takes now."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One step: the seconds of work of all of a role's workers together, by role, and the learner's.

    `groups` are what the work of a role is made of: one of them is one worker's.
    """

    work: Mapping[str, float]
    learning: float
    groups: int
    overlapped: bool
    """Whether the next batch is sampled while this one is learned."""

    def seconds(self, sizes: Mapping[str, int]) -> float:
        """How long the step would take with so many workers a role: sampling and scoring go on side by side."""
        each = [
            math.ceil(self.groups / sizes[role]) * work / self.groups for role, work in self.work.items() if sizes[role]
        ]
        rollouts = max(each, default=0.0)
        return max(rollouts, self.learning) if self.overlapped else rollouts + self.learning


def better(seen: Seen, sizes: Mapping[str, int], bounds: Mapping[str, tuple[int, int]]) -> dict[str, int]:
    """The sizes to go on with: at most one worker more or less a role, between the role's (least, most).

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
