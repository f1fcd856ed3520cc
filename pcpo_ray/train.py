"""The loop: prompts go to samplers, samplers make images and trajectories, scorers score the images, scores become
advantages, the learner applies the credit-weighted update, and its new weights go back to the samplers.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pcpo_ray import batches, checkpoint, config, evaluation
from pcpo_ray.errors import ClusterError, RewardError, TrainingError
from pcpo_ray.prompts import PromptSource
from pcpo_ray.recorder import Recorder
from pcpo_ray.stages import Published, Stages, State, Update, Weighted
from pcpo_ray.trajectory import Scored, Task

TROUBLE = ("fault", "missing_scores")
"""Kinds of events that a user should read at once; the others only go on record."""

QUIET = 30.0
"""Seconds in which nothing finishes, after which a run says what it is waiting for."""


@dataclass
class Phases:
    """Where a step's wall-clock seconds went, and how long each role really worked."""

    wall: dict[str, float] = field(default_factory=dict)
    busy: dict[str, float] = field(default_factory=dict)

    def add(self, phase: str, started: float) -> None:
        self.wall[phase] = self.wall.get(phase, 0.0) + time.perf_counter() - started

    def work(self, role: str, seconds: float) -> None:
        self.busy[role] = self.busy.get(role, 0.0) + seconds


class Traffic:
    """Moves groups between stages: a task becomes a rollout becomes a scored group, each as soon as it can.

    `event` records what went wrong and was mended, `say` gets a line whenever nothing has finished for `QUIET` seconds.
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
    ) -> None:
        self.stages = stages
        self.event = event
        self.say = say
        self.timeout = run.workers.task_timeout
        self.failures = run.rollout.reward_failures
        self.failed_in_a_row = 0
        self.phases = Phases()
        self.checksums: dict[tuple[int, bool], str] = {}
        self.waiting: set[Task] = set()
        self.scored: dict[Task, Scored] = {}
        self.moved = self.said = time.monotonic()

    def publish(self, *, averaged: bool = False) -> Published:
        """Make the learner's weights, or their running mean, loadable, and remember what their checksum must be."""
        started = time.perf_counter()
        published = self.stages.learner.publish(averaged=averaged)
        self.checksums[published.version, published.averaged] = published.checksum
        self.phases.add("publish", started)
        self.event("published", **asdict(published))
        return published

    def submit(self, tasks: Sequence[Task]) -> None:
        self.waiting.update(tasks)
        for task in tasks:
            self.stages.samplers.submit(task)

    def gather(self, tasks: Sequence[Task]) -> list[Scored]:
        """The tasks' scored groups, in the tasks' order."""
        self.moved = time.monotonic()
        while any(task not in self.scored for task in tasks):
            self._pump(f"{sum(task not in self.scored for task in tasks)} of {len(tasks)} groups")
        return [self.scored.pop(task) for task in tasks]

    def learn(self, step: int, batch: Sequence[Weighted]) -> Update:
        """Do an update, while groups go on moving."""
        self.stages.learner.begin(step, batch)
        return self.finish_update(step)

    def finish_update(self, step: int) -> Update:
        """The update begun last."""
        self.moved = time.monotonic()
        while (update := self.stages.learner.collect()) is None:
            self._pump(f"update {step}")
        self.phases.work("learner", update.seconds)
        return update

    def _pump(self, awaited: str) -> None:
        self.stages.wait(min(self.timeout, 1.0))
        for fault in self.stages.faults():
            self.event("fault", message=fault)
        for rollout in self.stages.samplers.collect():
            self.moved = time.monotonic()
            self._acknowledge(rollout.task, rollout.checksum, rollout.worker)
            self.phases.work("samplers", rollout.seconds)
            self.stages.scorers.submit(rollout)
        for scored in self.stages.scorers.collect():
            self.moved = time.monotonic()
            self.phases.work("scorers", scored.seconds)
            self.waiting.discard(scored.rollout.task)
            self.scored[scored.rollout.task] = scored
            self._count_failures(scored)
        still = time.monotonic() - self.moved
        if min(still, time.monotonic() - self.said) > QUIET:
            self.said = time.monotonic()
            self.say(f"waiting for {awaited}; {len(self.waiting)} groups in flight")
        if still > self.timeout:
            raise ClusterError(
                f"nothing finished for {still:.0f} s (workers.task_timeout={self.timeout:g}), waiting for {awaited}; "
                f"{len(self.waiting)} groups are with samplers or scorers"
            )

    def _acknowledge(self, task: Task, checksum: str, worker: str) -> None:
        expected = self.checksums[task.weights]
        if checksum != expected:
            raise TrainingError(
                f"{worker} sampled with weights of checksum {checksum}; version {task.version} has {expected}"
            )

    def _count_failures(self, scored: Scored) -> None:
        if not scored.missing:
            self.failed_in_a_row = 0
            return
        self.failed_in_a_row += 1
        task = scored.rollout.task
        self.event("missing_scores", step=task.step, prompt=task.prompt.text, causes=dict(scored.failures))
        if self.failed_in_a_row > self.failures:
            raise RewardError(
                f"{self.failed_in_a_row} groups in a row miss scores (rollout.reward_failures={self.failures}); "
                f"the last ones: {dict(scored.failures)}"
            )


class Loop:
    """One run, from a state to its last step. `report` gets every line recorded, `say` what a user should read."""

    def __init__(
        self,
        run: config.Run,
        stages: Stages,
        recorder: Recorder,
        *,
        prompts: PromptSource,
        held_out: PromptSource,
        report: Callable[[Mapping[str, Any]], None] = lambda row: None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.run = run
        self.stages = stages
        self.recorder = recorder
        self.prompts = prompts
        self.held_out = held_out
        self.report = report
        self.step = 0
        self.updating: batches.Batch | None = None
        self.histories = batches.make_histories(run)
        self.saved: int | None = None
        self.started = time.perf_counter()

        def event(kind: str, **details: Any) -> None:
            recorder.event(kind, **details)
            if kind in TROUBLE:
                say(f"{kind}: {details}")

        self.traffic = Traffic(run, stages, event=event, say=say)

    def restore(self, folder: Path) -> None:
        """Continue from a checkpoint."""
        state = self.stages.learner.restore(folder)
        self.step = self.saved = state.step
        for name, history in self.histories.items():
            history.restore(state.histories[name])
        self.recorder.event("resumed", step=self.step, checkpoint=folder.name)

    def train(self) -> None:
        """Run to the last step. A KeyboardInterrupt ends it after the update in progress, with a checkpoint."""
        try:
            self._train()
        except KeyboardInterrupt:
            self._stop()
            raise

    def _train(self) -> None:
        self.traffic.publish()
        if self.step == 0:
            self.evaluate()
        ahead = self.run.rollout.batches_ahead
        upcoming = self._sample(self.step + 1) if self.step < self.run.steps else []
        while self.step < self.run.steps:
            self.started = time.perf_counter()
            scored = self.traffic.gather(upcoming)
            self.traffic.phases.add("sample_and_score", self.started)
            if ahead and self.step + 1 < self.run.steps:
                upcoming = self._sample(self.step + 2)
            self._learn(scored)
            last = self.step == self.run.steps
            if last or self.step % self.run.evaluation.every == 0:
                self.evaluate()
            if last or self.step % self.run.checkpoints.every == 0:
                self.save()
            if not ahead and not last:
                upcoming = self._sample(self.step + 1)
        self.recorder.event("finished", step=self.step)

    def _sample(self, step: int) -> list[Task]:
        """Set the samplers to work on the batch of a step, with the weights as they are now."""
        size, images = self.run.rollout.prompts, self.run.rollout.images
        tasks = [
            Task(step=step, position=n, prompt=prompt, images=images, version=self.step, purpose="train")
            for n, prompt in enumerate(self.prompts.batch(step, size))
        ]
        self.traffic.submit(tasks)
        return tasks

    def _learn(self, scored: Sequence[Scored]) -> None:
        batch = batches.weigh(self.run, scored, self.histories, self.step + 1)
        self.recorder.samples("scores.parquet", self.step + 1, batches.score_columns(scored, batch))
        self.updating = batch
        started = time.perf_counter()
        update = self.traffic.learn(self.step + 1, batch.groups)
        self.traffic.phases.add("learn", started)
        self._learned(update)

    def _learned(self, update: Update) -> None:
        """Count the update that has just been done, send its weights out, and record the step."""
        assert self.updating is not None
        batch, self.updating = self.updating, None
        self.step = update.version
        if self.step == 1:
            self.recorder.event("first_update", max_log_ratio=update.first_log_ratio)
        self.traffic.publish()
        seconds = time.perf_counter() - self.started
        phases, self.traffic.phases = self.traffic.phases, Phases()
        images = self.run.rollout.prompts * self.run.rollout.images
        row = {
            **batch.metrics,
            "version": self.step,
            "loss": update.loss,
            **({} if update.kl is None else {"kl": update.kl}),
            "gradient_norm": update.gradient_norm,
            **update.diagnostics["overall"],
            "per_timestep": update.diagnostics["per_timestep"],
            "seconds": seconds,
            "samples_per_second": images / seconds,
            "samples": self.step * images,
            "phase_seconds": phases.wall,
            "idle": idle_shares(self.run.workers, phases.busy, seconds),
        }
        self.report(self.recorder.record("train", self.step, row))

    def evaluate(self) -> None:
        """Score held-out prompts at the current version; the first evaluation and the last keep their pictures."""
        started = time.perf_counter()
        scored = evaluated(self.run, self.traffic, self.held_out, self.step)
        values = evaluation.table(self.run, scored)
        columns: dict[str, Any] = {
            "step": np.full(values[evaluation.TOTAL].size, self.step),
            "prompt": [group.rollout.task.prompt.text for group in scored for _ in range(self.run.evaluation.images)],
            "position": np.repeat(np.arange(len(scored)), self.run.evaluation.images),
            "sample": np.tile(np.arange(self.run.evaluation.images), len(scored)),
            **{name: value.ravel() for name, value in values.items()},
        }
        self.recorder.samples("evaluations.parquet", self.step, columns)
        if self.step in (0, self.run.steps):
            self.recorder.pictures(self.step, [self.stages.fetch(group.rollout.images) for group in scored])
        self.traffic.phases = Phases()  # an evaluation's work is no step's
        row = {
            "rewards": {name: asdict(evaluation.estimate(value)) for name, value in values.items()},
            "images": int(values[evaluation.TOTAL].size),
            "seconds": time.perf_counter() - started,
        }
        self.report(self.recorder.record("evaluation", self.step, row))

    def save(self) -> None:
        """Write a checkpoint of the current step, and let the oldest go."""
        histories = {name: history.state() for name, history in self.histories.items()}
        folder = checkpoint.folder_for(self.recorder.folder, self.step)
        self.stages.learner.save(folder, State(step=self.step, histories=histories))
        checkpoint.prune(self.recorder.folder, self.run.checkpoints.keep)
        self.saved = self.step
        self.recorder.event("checkpoint", step=self.step)

    def _stop(self) -> None:
        if self.updating is not None:
            self._learned(self.traffic.finish_update(self.step + 1))
        if self.saved != self.step:
            self.save()
        self.recorder.event("stopped", step=self.step)


def evaluated(run: config.Run, traffic: Traffic, held_out: PromptSource, version: int) -> list[Scored]:
    """The evaluation's groups at a version that has been published."""
    if run.optimizer.average is not None:
        traffic.publish(averaged=True)
    tasks = evaluation.tasks(run, held_out, version)
    traffic.submit(tasks)
    return traffic.gather(tasks)


def idle_shares(workers: config.Workers, busy: Mapping[str, float], seconds: float) -> dict[str, float]:
    """The share of its workers' time that each role did not work."""
    counts = {"samplers": workers.samplers.workers, "scorers": workers.scorers.workers, "learner": 1}
    return {role: max(0.0, 1 - busy.get(role, 0.0) / (count * seconds)) for role, count in counts.items()}
