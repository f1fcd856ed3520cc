"""Control: the status of a run, the requests to it, and the number of its workers."""

import math
import time
from collections import Counter, deque
from collections.abc import Mapping

from pcpo_ray import config
from pcpo_ray.config import exactness
from pcpo_ray.data.records import RunStatus
from pcpo_ray.data.requests import ENDED
from pcpo_ray.errors import StopAskedError
from pcpo_ray.metrics.changes import RunNumbers
from pcpo_ray.training.dispatcher import Dispatcher, Phases
from pcpo_ray.training.progress import Progress
from pcpo_ray.training.recorder import Recorder
from pcpo_ray.training.scheduling import sizing
from pcpo_ray.training.stages import Stages

MANY, SELDOM = 1_000, 1.0
"""With so many workers the status, which names each, is told once in so many seconds; with fewer, more often."""

KEPT_REQUESTS = 20
"""The number of requests carried out last that a status names."""


class Control:
    """Answers requests, resizes the pools, and tells the status and the metrics of a run."""

    def __init__(
        self, run: config.Run, stages: Stages, recorder: Recorder, dispatcher: Dispatcher, progress: Progress
    ) -> None:
        self.run, self.stages, self.recorder = run, stages, recorder
        self.dispatcher, self.progress = dispatcher, progress
        self.done: deque[str] = deque(maxlen=KEPT_REQUESTS)
        self.steady: dict[str, int] = {}
        """The pool sizes that the last step called for."""
        self.due = -math.inf

    def serve(self) -> None:
        """Tell how the run is, and do what was asked of it: the more workers there are, the more seldom.

        Raises StopAskedError where it is to stop and no step is under way, as a lost learner is being replaced.
        """
        now = time.monotonic()
        if now < self.due:
            return
        self.report()
        status = self.status()
        self.recorder.status(status.row())
        for request in self.stages.exchange(status):
            self.recorder.event("asked", **request.asked)
            if request.max_staleness is not None:
                self._set_staleness(request.max_staleness)
            if request.fault is not None:
                self.stages.inject_fault(request.fault)
            self._resize({"samplers": request.samplers, "scorers": request.scorers}, "asked for")
            self.progress.stopping = self.progress.stopping or request.stop
            self.done.append(request.id)
        if self.progress.stopping and self.progress.recovering:  # which may take workers.task_timeout
            raise StopAskedError
        self.due = now + SELDOM * min(1.0, sum(pool.wanted for pool in (status.samplers, status.scorers)) / MANY)

    def _set_staleness(self, wanted: int) -> None:
        """Let batches be so many versions old, unless the run could not learn them."""
        if refused := exactness.unweighed(self.run, wanted):
            self.recorder.event("refused", why=refused)
            self.dispatcher.say(f"warning: not done: {refused}")
            return
        self.progress.max_staleness, self.progress.paced = wanted, True

    def report(self) -> None:
        """Give the metrics the numbers of the status."""
        self.recorder.meter.status(
            RunNumbers(
                step=self.progress.step,
                steps=self.run.steps,
                max_staleness=self.progress.max_staleness,
                in_flight=len(self.dispatcher.ledger),
                pools=self.stages.pool_status(),
                tasks=self.dispatcher.counters.tasks,
            )
        )

    def status(self) -> RunStatus:
        """Make the run's status as it is now."""
        progress, home = self.progress, self.recorder.home
        last, evaluated = progress.last_step, progress.last_evaluation
        pools, seen = self.stages.pool_status(), self.dispatcher.versions
        return RunStatus(
            run=self.run.name,
            state="stopping" if progress.stopping and progress.state not in ENDED else progress.state,
            error=progress.error,
            step=progress.step,
            steps=self.run.steps,
            waiting=self.dispatcher.awaited,
            reward=None if last is None else last.reward_mean,
            reward_std=None if last is None else last.reward_std,
            evaluated={} if evaluated is None else {name: value["mean"] for name, value in evaluated.rewards.items()},
            evaluated_step=None if evaluated is None else evaluated.step,
            change=None if evaluated is None else (evaluated.changes or {}).get(config.TOTAL),
            seconds=None if last is None else last.seconds,
            samples_per_second=None if last is None else last.samples_per_second,
            idle={} if last is None else last.idle,
            sample_age=None if last is None else last.sample_age,
            ages=self._ages(),
            max_staleness=progress.max_staleness,
            in_flight=len(self.dispatcher.ledger),
            learners_lost=progress.learners_lost,
            checkpoint=None if progress.saved is None else home.checkpoint_place(progress.saved),
            folder=home.address,
            events=[event.row() for event in self.recorder.recent],
            done=list(self.done),
            samplers=pools["samplers"],
            scorers=pools["scorers"],
            versions={name: seen.get(name) for name in pools["samplers"].workers},
        )

    def _ages(self) -> dict[int, int]:
        begun = self.progress.begun.items()
        wanted = [task for step, tasks in begun if step <= self.run.steps for task in tasks]
        return dict(Counter(self.progress.step - task.version for task in wanted))

    def fit(self, phases: Phases, seconds: float) -> None:
        """Resize the pools so that nobody waits, within the config's bounds; two steps in a row must agree.

        `phases` and `seconds` tell where the last step's time went.
        """
        roles = {"samplers": self.run.workers.samplers, "scorers": self.run.workers.scorers}
        bounds = {role: (pool.min, pool.max) for role, pool in roles.items() if pool.max is not None}
        sizes = {role: pool.wanted for role, pool in self.stages.pool_status().items()}
        seen = sizing.Seen(
            work={role: phases.busy.get(role, 0.0) + phases.lent * (role == "samplers") for role in roles},
            learning=max(0.0, seconds - phases.wall.get("sample_and_score", 0.0)),
            groups=self.run.rollout.prompts,
            overlapped=self.progress.max_staleness > 0,
            ranks=self.run.workers.learner.ranks if self.run.workers.learner.samples else 0,
        )
        wished = sizing.better(seen, sizes, bounds)
        if wished == self.steady:
            self._resize(wished, "to keep nobody waiting")
        self.steady = wished

    def _resize(self, sizes: Mapping[str, int | None], why: str) -> None:
        now = {role: pool.wanted for role, pool in self.stages.pool_status().items()}
        changed = {role: count for role, count in sizes.items() if count is not None and count != now[role]}
        if changed:
            self.stages.resize(**changed)
            self.recorder.event("resized", why=why, **changed)
            self.dispatcher.say(f"{why}: " + ", ".join(f"{role} {now[role]} -> {n}" for role, n in changed.items()))
