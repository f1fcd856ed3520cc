"""Counters: tasks by outcome, lags and sizes, counted on the driver as groups pass."""

from collections.abc import Mapping, Sequence
from typing import Any

from pcpo_ray.data.types import Rollout, Scored, Task

Tasks = dict[str, dict[str, dict[str, int]]]
"""Numbers of tasks, by role, outcome and reason."""

NO_REASON = "none"
"""The reason of an outcome that needs none."""


class Counters:
    """The counts of a run. Times are seconds on the driver's clock; a key is (version, True for its EMA)."""

    def __init__(self) -> None:
        self.tasks: Tasks = {}
        self._published: dict[tuple[int, bool], float] = {}
        self._versions: dict[str, int] = {}
        self._waiting: dict[Task, int] = {}
        self._held = self._peak = 0
        self.largest = 0
        """Bytes of the largest group sampled so far, trajectory and images."""
        self._lag, self._used = 0.0, 0
        self._tokens: dict[str, dict[str, int]] = {}

    def count(self, role: str, outcome: str, reason: str = NO_REASON, tasks: int = 1) -> None:
        """Count tasks of a role that have come to this outcome."""
        reasons = self.tasks.setdefault(role, {}).setdefault(outcome, {})
        reasons[reason] = reasons.get(reason, 0) + tasks

    def published(self, key: tuple[int, bool], now: float) -> None:
        """Note that weights can be loaded from now on."""
        self._published[key] = now

    def sampled(self, rollout: Rollout, now: float) -> None:
        """Count a sampled group. The first one with its weights tells how long they lay unused."""
        task = rollout.task
        self.count("samplers", "done")
        since = self._published.pop(task.weights, None)
        if since is not None:
            self._lag += max(0.0, now - since - rollout.seconds)
            self._used += 1
        self._versions[rollout.worker] = max(task.version, self._versions.get(rollout.worker, 0))
        self._held += rollout.bytes - self._waiting.get(task, 0)
        self._waiting[task] = rollout.bytes
        self.largest = max(self.largest, rollout.bytes)
        self._peak = max(self._peak, self._held)

    def scored(self, scored: Scored) -> None:
        """Count a group that was scored, or that misses scores, and what its judges took."""
        for reward, used in scored.tokens.items():
            kinds = self._tokens.setdefault(reward, {})
            for kind, tokens in used.items():
                kinds[kind] = kinds.get(kind, 0) + tokens
        if scored.failures:
            self.count("scorers", "missing", ",".join(sorted(scored.failures)))
        else:
            self.count("scorers", "done")

    def tokens(self) -> dict[str, dict[str, int]] | None:
        """Return the tokens that judges used since the last call, by reward and kind; None for none."""
        found, self._tokens = self._tokens, {}
        return found or None

    def taken(self, tasks: Sequence[Task]) -> None:
        """Note that these groups wait no longer."""
        for task in tasks:
            self._held -= self._waiting.pop(task, 0)

    def forget(self) -> None:
        """Forget all that was under way: it is given up."""
        self._waiting.clear()
        self._held = 0
        self._published.clear()

    def step(self, version: int, at_work: Sequence[str]) -> Mapping[str, Any]:
        """Return the counts of a step that was sampled with `version` or older; `at_work` names the present samplers.

        `publish_lag`: the seconds that versions lay unused since the step before, and their number.
        `sampler_behind`: how many versions before `version` the slowest sampler last sampled, or came to be.
        `buffer_bytes`: the most that waited at once to be scored or learned. `tokens`: what judges used.
        """
        self._versions = {worker: self._versions.get(worker, version) for worker in at_work}
        found = {
            "publish_lag": {"seconds": self._lag, "versions": self._used},
            "sampler_behind": max(0, version - min(self._versions.values(), default=version)),
            "buffer_bytes": self._peak,
            "tokens": self.tokens(),
        }
        self._lag, self._used = 0.0, 0
        self._peak = self._held
        return found
