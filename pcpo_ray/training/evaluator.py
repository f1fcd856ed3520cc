"""Evaluator: evaluates a run while it trains, judges what that shows, and ends the run where its monitors say so."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pcpo_ray import config
from pcpo_ray.config import TOTAL
from pcpo_ray.data.prompts import PromptSource
from pcpo_ray.data.records import EvaluationRecord, Record
from pcpo_ray.data.types import Scored
from pcpo_ray.errors import RolloutsLostError
from pcpo_ray.rewards import quality
from pcpo_ray.runs import intervals, records
from pcpo_ray.training import evaluation, monitors
from pcpo_ray.training.checkpointer import Checkpointer
from pcpo_ray.training.dispatcher import Dispatcher, Phases
from pcpo_ray.training.progress import Progress
from pcpo_ray.training.recorder import Recorder
from pcpo_ray.training.restarts import MAX_RESTARTS
from pcpo_ray.training.stages import Stages


class Evaluator:
    """Scores the evaluation's prompts, compares them with the start, raises alarms, and acts on them.

    `write` records a finished evaluation.
    """

    def __init__(
        self,
        run: config.Run,
        stages: Stages,
        recorder: Recorder,
        dispatcher: Dispatcher,
        progress: Progress,
        *,
        prompts: PromptSource,
        held_out: PromptSource,
        write: Callable[[Record], None],
        checkpointer: Checkpointer,
    ) -> None:
        self.run, self.stages, self.recorder = run, stages, recorder
        self.dispatcher, self.progress = dispatcher, progress
        self.prompts, self.held_out = prompts, held_out
        self._write, self.checkpointer = write, checkpointer
        self.assessor = quality.assessor(run, recorder.folder, dispatcher.say)
        self.first_scores: Mapping[str, np.ndarray] | None = None
        self.alarms: Mapping[str, str] = {}

    @property
    def due(self) -> bool:
        """True where the current step is one to evaluate."""
        return self.progress.step == self.run.steps or self.progress.step % self.run.evaluation.every == 0

    def recalled(self) -> bool:
        """Return False where the current step's evaluation is still to be made; takes up the alarms of one on record.

        Alarms of an evaluation that was thrown away with its step are forgotten.
        """
        rows, evaluated = self.recorder.metrics(), ("evaluation", self.progress.step)
        done = any((row["kind"], row["step"]) == evaluated for row in rows)
        self.alarms = monitors.judge(self.run, rows).alarms if done else {}
        return done or not self.due

    @property
    def ends_run(self) -> bool:
        """True where an alarm is to end the run."""
        return bool(self.alarms) and self.run.monitors.action != "warn"

    def evaluate(self) -> None:
        """Score the evaluation's prompts at the current version.

        The first and the last evaluation keep all their images, the others those of `SHOWN` prompts.
        """
        self.dispatcher.phases = Phases()  # an evaluation's work is no step's
        self.progress.state, started = "evaluating", time.perf_counter()
        step = self.progress.step
        scored, seen, images = self._scored()
        shown = {place: images[place][0] for place in evaluation.shown(len(scored)) if place in images}
        if step == 0:
            evaluation.check_scored(self.run, scored)
        values = evaluation.table(self.run, scored)
        self.recorder.samples("evaluations.parquet", step, evaluation.columns(self.run, step, scored, values))
        if images:
            self.recorder.write_images(step, images)
            self.recorder.show(step, {scored[place].rollout.task.prompt.text: shown[place] for place in shown})
        if self.assessor is not None:
            self.assessor.keep(step, [group.measured for group in scored])
        measured = evaluation.evaluation_summary(self.run, scored, seen, self.assessor)
        if step > 0:
            measured["changes"] = self._changes(values)
        rows = [*self.recorder.metrics(), {"kind": "evaluation", "step": step, **measured}]
        self._raise_alarms(monitors.judge(self.run, rows).alarms, rows)
        phases, self.dispatcher.phases = self.dispatcher.phases, Phases()
        self._write(
            EvaluationRecord(
                step=step,
                **measured,
                alarms=dict(self.alarms),
                images=int(values[TOTAL].size) + sum(group.rollout.task.images for group in seen),
                seconds=time.perf_counter() - started,
                busy_seconds=phases.busy_in,
                tokens=self.dispatcher.counters.tokens(),
                workers={role: pool.ready for role, pool in self.stages.pool_status().items()},
            )
        )
        self.recorder.push()

    def _scored(self) -> tuple[list[Scored], list[Scored], dict[int, np.ndarray]]:
        """Make an evaluation, with the images that it keeps by place; start again where some of all are gone."""
        for attempt in range(1, MAX_RESTARTS + 1):
            scored, seen = evaluation.run_evaluation(
                self.run,
                self.dispatcher,
                self.held_out,
                self.progress.step,
                oldest=self.progress.oldest,
                prompts=self.prompts,
            )
            whole = self.progress.step in (0, self.run.steps)
            places = range(len(scored)) if whole else evaluation.shown(len(scored))
            try:
                return scored, seen, {place: self.stages.fetch(scored[place].rollout.images) for place in places}
            except RolloutsLostError as lost:
                if not whole:  # the scores are here, and a few images are not worth another evaluation
                    self.recorder.trouble(f"{lost}; the evaluation of step {self.progress.step} keeps no images")
                    return scored, seen, {}
                if attempt == MAX_RESTARTS:
                    raise
                self.recorder.event("fault", message=f"{lost}; the evaluation is made again")
        raise AssertionError("the last attempt returns or raises")

    def _changes(self, values: Mapping[str, np.ndarray]) -> dict[str, dict[str, float | None]]:
        """Compare each reward's scores with those of the evaluation at step 0."""
        if self.first_scores is None:
            self.first_scores = records.evaluations(self.recorder.folder, 0)
        return {name: intervals.change(self.first_scores[name], value) for name, value in values.items()}

    def _raise_alarms(self, alarms: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> None:
        """Tell of the alarms that the evaluation before did not raise."""
        before = [row["alarms"] for row in rows[:-1] if row["kind"] == "evaluation"]
        for name, text in alarms.items():
            if name not in before[-1]:
                action, step = self.run.monitors.action, self.progress.step
                self.recorder.event("alarm", step=step, monitor=name, text=text, action=action)
                self.dispatcher.say(f"ALARM at step {step}, {name}: {text}")
        self.alarms = alarms

    def stop_on_alarm(self) -> None:
        """End the run as monitors.action says; the run's `error` tells why, and how to go on."""
        progress, back = self.progress, self.checkpointer.newest_healthy()
        if back is None:
            self.checkpointer.save_unsaved()
        else:
            self.recorder.home.set_aside_after(back)
        advice = monitors.advice(self.run.monitors.action, progress.step, back)
        progress.error = f"{'; '.join(self.alarms.values())}: {advice}"
        if back is None:
            self.recorder.event("stopped", step=progress.step, alarm=progress.error)
        else:
            self.recorder.event("rolled_back", step=progress.step, to=back, alarm=progress.error)
        progress.state = "stopped"
