"""Dispatcher: moves groups between the stages, and knows what it waits for."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pcpo_ray import config
from pcpo_ray.data.types import Scored, Task
from pcpo_ray.data.updates import Published, TrainingGroup, Update
from pcpo_ray.errors import ClusterError, LearnerLostError, RewardError, TrainingError
from pcpo_ray.metrics.catalogue import Phase
from pcpo_ray.runs.folder import RunFolder
from pcpo_ray.runs.lines import counted
from pcpo_ray.training.counters import Counters
from pcpo_ray.training.restarts import MAX_RESTARTS
from pcpo_ray.training.scheduling.ledger import Ledger
from pcpo_ray.training.scheduling.watchdog import StalledError, Watchdog
from pcpo_ray.training.stages import Stages

QUIET = 30.0
"""Seconds without a line after which a run says what it is waiting for, unless it is watched."""

Watch = Callable[[Phase, int, int, int], None]
"""A function that is told of the phase, its step, and how much of it is done of how much (0 of 0: not countable)."""


def trouble(kind: str, details: Mapping[str, Any]) -> str:
    """Describe an event that a user must see in a line; empty for any other."""
    if kind == "fault":
        return f"fault: {details['message']}"
    if kind in ("note", "recovered"):
        return f"{kind}: {details['message']}"
    if kind == "missing_scores":
        return f"scores are missing, step {details['step']}, {_cut(details['prompt'], 60)!r}: {why(details['causes'])}"
    return ""


def why(causes: Mapping[str, str]) -> str:
    """Name the rewards by their cause, in a line."""
    by_cause: dict[str, list[str]] = {}
    for reward, cause in causes.items():
        by_cause.setdefault(cause, []).append(reward)
    return "; ".join(f"{', '.join(names)}: {_cut(cause, 240)}" for cause, names in by_cause.items())


def _cut(text: str, most: int) -> str:
    """Shorten a text to a line of so many characters; its end stays, where the file and line of an error are."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most // 2]} ... {line[-most // 2 :]}"


def _images(task: Task) -> int:
    return task.images * len(task.prompts)


@dataclass
class Phases:
    """The wall-clock seconds of a step by phase, and the seconds that each role really worked."""

    wall: dict[str, float] = field(default_factory=dict)
    busy: dict[str, float] = field(default_factory=dict)
    busy_in: dict[str, dict[str, float]] = field(default_factory=dict)
    """Each role's busy seconds, by the phase in which the work was done."""
    lent: float = 0.0
    """Seconds that the learner's ranks sampled, all together."""

    def add(self, phase: str, started: float) -> None:
        self.wall[phase] = self.wall.get(phase, 0.0) + time.perf_counter() - started

    def work(self, role: str, seconds: float, phase: str) -> None:
        self.busy[role] = self.busy.get(role, 0.0) + seconds
        phases = self.busy_in.setdefault(role, {})
        phases[phase] = phases.get(phase, 0.0) + seconds

    def work_lent(self, seconds: float, phase: str, ranks: int) -> None:
        """Note that one of so many ranks has sampled: all of them together are the one learner."""
        self.lent += seconds
        self.work("learner", seconds / ranks, phase)


class Dispatcher:
    """Moves groups between the stages: a task becomes a rollout becomes a scored group, each as soon as it can.

    `event` records faults and recoveries. `serve` is called while the dispatcher waits, `entered` when a phase begins,
    `watch` whenever more of a phase is done; without it, `say` gets a line whenever there was none for `QUIET` seconds.

    Raises ClusterError when nothing finishes for workers.task_timeout seconds while work remains, and RewardError when
    more than rollout.reward_failures groups in a row miss scores.
    """

    def __init__(
        self,
        run: config.Run,
        stages: Stages,
        *,
        event: Callable[..., None],
        say: Callable[[str], None],
        serve: Callable[[], None] = lambda: None,
        entered: Callable[[Phase], None] = lambda phase: None,
        watch: Watch | None = None,
    ) -> None:
        self.stages = stages
        self.event = event
        self.say = say
        self.serve = serve
        self.entered = entered
        self.watch: Watch = watch or (lambda phase, step, done, total: None)
        self.watched = watch is not None
        self.phase = ""
        self.ranks = run.workers.learner.ranks
        self.failures = run.rollout.reward_failures
        self.failed_in_a_row = 0
        self.exhausted: RewardError | None = None
        self.phases = Phases()
        self.counters = Counters()
        self.checksums: dict[tuple[int, bool], str] = {}
        self.versions: dict[str, int] = {}
        """The version that each sampler last sampled with."""
        self.awaited = ""
        self.ledger: Ledger[Task, Scored] = Ledger()
        self.missing: set[Task] = set()
        """The tasks being gathered that are not scored yet."""
        self.regained: Counter[Task] = Counter()
        """The number of times that a group was sampled again because its images, or its weights, were gone."""
        self.watchdog = Watchdog(limit=run.workers.task_timeout, quiet=QUIET, now=time.monotonic())

    def enter(self, phase: Phase, step: int = 0) -> None:
        """Begin a phase, of a step."""
        self.phase = phase
        self.entered(phase)
        self.watch(phase, step, 0, 0)

    def publish(self, *, oldest: int, averaged: bool = False) -> Published:
        """Make the learner's weights, or their EMA, loadable, and remember the checksum that samplers must report.

        Versions before `oldest` may be forgotten.
        """
        self.enter("publish")
        started = time.perf_counter()
        published = self.stages.publish(oldest=oldest, averaged=averaged)
        self.checksums = {key: value for key, value in self.checksums.items() if key[0] >= oldest}
        self.counters.published((published.version, published.averaged), time.monotonic())
        self.phases.add("publish", started)
        return self._loadable(published)

    def republish(self, home: RunFolder, step: int, version: int) -> Published:
        """Make an older version loadable again, which the checkpoint of a step holds."""
        return self._loadable(self.stages.republish(home, step, version))

    def _loadable(self, published: Published) -> Published:
        self.checksums[published.version, published.averaged] = published.checksum
        # counted, not named: a line a step with a thousand samplers in it would be most of the record
        self.event("published", **asdict(published) | {"received": len(published.received)})
        return published

    def submit(self, tasks: Sequence[Task]) -> None:
        for task in tasks:
            self.ledger.issue(task)
            self.stages.samplers.submit(task)

    def cancel(self) -> None:
        """Forget all groups that are under way."""
        self.stages.samplers.cancel()
        self.stages.scorers.cancel()
        self.ledger.forget()
        self.counters.forget()
        self.regained.clear()

    def gather(self, tasks: Sequence[Task]) -> list[Scored]:
        """Wait for the scored groups of tasks, in the tasks' order.

        Raises RewardError when too many in a row miss scores. It is raised here and not in the midst of an update, so
        that what was learned can be kept.
        """
        self.watchdog.progress(time.monotonic())
        self.missing = self.ledger.missing(tasks)  # counted once: a batch may have thousands
        evaluating = self.phase == "evaluate"
        verb, unit = ("evaluating", "images") if evaluating else ("sampling", "groups")
        total = sum(map(_images, tasks)) if evaluating else len(tasks)
        step = 0 if not tasks else tasks[0].version if evaluating else tasks[0].step
        before, done = -1, 0
        while self.missing:
            if self.exhausted is not None:
                raise self.exhausted
            if len(self.missing) != before:
                before = len(self.missing)
                done = total - (sum(map(_images, self.missing)) if evaluating else before)
                self.watch("evaluate" if evaluating else "sample_and_score", step, done, total)
            self._pump(f"{verb} step {step}: {done}/{total} {unit}")
        for task in tasks:
            self.regained.pop(task, None)
        self.counters.taken(tasks)
        return self.ledger.take(tasks)

    def sampled_again(self, groups: Sequence[TrainingGroup], places: Sequence[int]) -> list[TrainingGroup]:
        """Sample the groups at these places anew. They have the same bits, as a task is a pure function."""
        tasks = [groups[place].rollout.task for place in places]
        self.submit(tasks)
        found = dict(zip(places, self.gather(tasks), strict=True))
        return [
            replace(group, rollout=found[place].rollout) if place in found else group
            for place, group in enumerate(groups)
        ]

    def learn(self, step: int, batch: Sequence[TrainingGroup]) -> Update:
        """Wait for an update, while groups go on moving. Raises LearnerLostError also where it does not end in time."""
        self.stages.learner.begin(step, batch)
        self.watchdog.progress(time.monotonic())
        while (update := self.stages.learner.collect()) is None:
            try:
                self._pump(f"learning step {step}")
            except StalledError as error:
                raise LearnerLostError(str(error)) from error
        return self._learned(update)

    def settle(self) -> Update | None:
        """Wait for the update under way, and return it; None where there is none. No group moves meanwhile.

        Raises ClusterError where it is not done within workers.task_timeout.
        """
        deadline = time.monotonic() + self.watchdog.limit
        while self.stages.learner.updating():
            if (update := self.stages.learner.collect()) is not None:
                return self._learned(update)
            if time.monotonic() > deadline:
                raise StalledError(f"the update under way was not done in {self.watchdog.limit:g} s")
            self.stages.wait(min(self.watchdog.limit, 1.0))
        return None

    def _learned(self, update: Update) -> Update:
        self.phases.work("learner", update.seconds, self.phase)
        self.counters.count("learner", "done")
        return update

    def _pump(self, awaited: str) -> None:
        self.awaited = awaited
        self.stages.wait(min(self.watchdog.limit, 1.0))
        self.serve()
        now = time.monotonic()
        for fault in self.stages.faults():
            self.event("fault", message=fault)
        for kind, text in self.stages.notes():
            self.event(kind, message=text)
        for rollout in self.stages.samplers.collect():
            self.watchdog.progress(now)
            self._acknowledge(rollout.task, rollout.checksum, rollout.worker)
            if rollout.lent:
                self.phases.work_lent(rollout.seconds, self.phase, self.ranks)
            else:
                self.phases.work("samplers", rollout.seconds, self.phase)
            self.counters.sampled(rollout, now)
            self.stages.scorers.submit(rollout)
        if without := self.stages.samplers.lost():
            self._publish_lost(without)
        for rollout in self.stages.scorers.lost():
            images = f"images of step {rollout.task.step}"
            self._count_lost(rollout.task, "images_gone", f"{images} were lost {MAX_RESTARTS + 1} times before a score")
            self.event("fault", message=f"{images} are gone; they are sampled again")
            self.stages.samplers.submit(rollout.task)
        for scored in self.stages.scorers.collect():
            self.watchdog.progress(now)
            self.phases.work("scorers", scored.seconds, self.phase)
            self.counters.scored(scored)
            self.ledger.done(scored.rollout.task, scored)
            self.missing.discard(scored.rollout.task)
            self._count_failures(scored)
        if (line := self.watchdog.check(now, awaited)) and not self.watched:
            self.say(line)

    def _publish_lost(self, tasks: Sequence[Task]) -> None:
        """Publish the weights of these tasks once more, and hand the tasks out again."""
        for version, averaged in dict.fromkeys(task.weights for task in tasks):
            self.event("fault", message=f"weights of version {version} are gone; they are published again")
            self._loadable(self.stages.publish_lost(version, averaged))
        for task in tasks:
            often = f"weights of version {task.version} were lost {MAX_RESTARTS + 1} times before a group was sampled"
            self._count_lost(task, "weights_gone", often)
            self.stages.samplers.submit(task)

    def _count_lost(self, task: Task, reason: str, often: str) -> None:
        """Count a task that is to be sampled again. Raises ClusterError where that has happened too often."""
        self.regained[task] += 1
        if self.regained[task] > MAX_RESTARTS:
            raise ClusterError(often)
        self.counters.count("samplers", "lost", reason)

    def spoke(self) -> None:
        """Note that a line about the run was printed."""
        self.watchdog.spoke(time.monotonic())

    def _acknowledge(self, task: Task, checksum: str, worker: str) -> None:
        expected = self.checksums[task.weights]
        if checksum != expected:
            raise TrainingError(
                f"{worker} sampled with weights of checksum {checksum}; version {task.version} has {expected}"
            )
        self.versions[worker] = task.version

    def _count_failures(self, scored: Scored) -> None:
        if not scored.failures:
            self.failed_in_a_row = 0
            return
        self.failed_in_a_row += 1
        task = scored.rollout.task
        self.event(
            "missing_scores",
            step=task.version if task.purpose == "evaluate" else task.step,  # evaluations are all seeded as step 0
            prompt="; ".join(prompt.text for prompt in task.prompts),
            causes=dict(scored.failures),
        )
        if self.failed_in_a_row > self.failures:
            self.exhausted = RewardError(
                f"scores are missing in {counted(self.failed_in_a_row, 'group')} in a row (rollout.reward_failures="
                f"{self.failures}): {why(scored.failures)}; fix the reward or its server"
            )
