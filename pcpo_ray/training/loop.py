"""The loop: prompts go to samplers, samplers make images and trajectories, scorers score the images, scores become
advantages, the learner applies the credit-weighted update, and its new weights go back to the samplers.
"""

import contextlib
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pcpo_ray import config
from pcpo_ray.data.prompts import PromptSource
from pcpo_ray.data.tasks import evaluation_tasks, training_tasks, watched_training_tasks
from pcpo_ray.data.types import Scored, Task
from pcpo_ray.data.updates import DriverState, PoolStatus, Update
from pcpo_ray.errors import LearnerLostError, RolloutsLostError, RunError, TakenOverError, TrainingError
from pcpo_ray.metrics.reporter import RunNumbers
from pcpo_ray.process import signals
from pcpo_ray.rewards import quality
from pcpo_ray.runs import intervals, records
from pcpo_ray.training import evaluation, monitors, status
from pcpo_ray.training.batch import TrainingBatch, make_histories, rounding_warning, score_columns, training_batch
from pcpo_ray.training.dispatcher import MAX_RESTARTS, Dispatcher, Phases, trouble
from pcpo_ray.training.recorder import Recorder
from pcpo_ray.training.scheduling import sizing
from pcpo_ray.training.scheduling.staleness import capacity
from pcpo_ray.training.stages import Stages
from pcpo_ray.workers.learner import movement

AT_ONE_STEP = 3
"""How often the learner may be lost at one step: what comes back there is no accident."""


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
        self._report = report
        self.step = 0
        self.sampling: dict[int, list[Task]] = {}
        self.updating: TrainingBatch | None = None
        self.max_staleness = run.rollout.max_staleness
        self.losses, self.lost_at = 0, Counter[int]()
        """How often the learner was lost since a newer checkpoint was made, and at which steps."""
        self.furthest = -1
        """The newest checkpoint ever made: what is made again, after a loss, is no progress."""
        self.histories = make_histories(run)
        self.remembered: Mapping[str, Any] = {}
        """What the histories were before a batch that is not learned yet: of a checkpoint now it is no part."""
        self.micro_batch: int | None = None
        self.first_scores: Mapping[str, np.ndarray] | None = None
        self.alarms: Mapping[str, str] = {}
        self.assessor = quality.assessor(run, recorder.folder, say)
        self.saved: int | None = None
        self.moved: deque[Mapping[str, Any]] = deque(maxlen=movement.PATIENCE)
        self.started = time.perf_counter()

        def event(kind: str, **details: Any) -> None:
            recorder.event(kind, **details)
            if line := trouble(kind, details):
                say(line)

        self.traffic = Dispatcher(run, stages, event=event, say=say)
        self.traffic.asked = self._serve
        self.traffic.entered = recorder.meter.phase
        self.noted = signals.Noted()
        self.stopping = self.full = self.rounding = False
        self.steady: dict[str, int] = {}
        self.unwritten: list[Mapping[str, Any]] = []
        """Rows that could not be recorded."""
        # for status.py
        self.state, self.error = "starting", ""
        self.last: dict[str, dict[str, Any]] = {}
        self.learners_lost = 0
        self.done: deque[str] = deque(maxlen=20)

    def report(self, row: Mapping[str, Any]) -> None:
        self._report(row)
        self.traffic.spoke()

    def restore(self, step: int) -> None:
        """Continue from the checkpoint of a step."""
        state = self.stages.learner.restore(self.recorder.home, step)
        self.step = self.saved = state.step
        self.furthest = max(self.furthest, self.step)
        self.micro_batch = state.micro_batch
        self.max_staleness = self.max_staleness if state.max_staleness is None else state.max_staleness
        self.traffic.tally.largest = max(self.traffic.tally.largest, state.largest)
        for name, history in self.histories.items():
            history.restore(state.histories[name])
        for row in state.rows:
            self.recorder.put_back(row)
        self._remember_moved()
        for version in state.older:
            self.traffic.republish(self.recorder.home, step, version)
        for begun, version in state.begun:
            self._begin(begun, version)
        self.recorder.event("resumed", step=self.step, checkpoint=self.recorder.home.checkpoint(step).name)

    def _remember_moved(self) -> None:
        """Take up the newest steps on record, so that a resumed run ends where an undisturbed one would."""
        self.moved.clear()
        self.moved.extend(row for row in self.recorder.metrics() if row["kind"] == "train" and row["step"] <= self.step)

    def train(self) -> None:
        """Run to the last step. A KeyboardInterrupt ends it after the update in progress, with a checkpoint."""
        try:
            with signals.noted() as self.noted:
                self._train_on()
        except Exception as error:
            self.state, self.error = "failed", str(error)
            raise
        finally:
            self.stages.end(status.status(self))

    def _train_on(self) -> None:
        """Train, past every learner that is lost; whatever ends the run, what was learned is kept."""
        lost: LearnerLostError | None = None
        try:
            while True:
                try:
                    if lost is not None:  # the new learner may be lost as well
                        self._rewind(lost)
                    return self._train()
                except LearnerLostError as error:
                    self._count_loss(error)
                    lost = error
        except KeyboardInterrupt:
            self._stop()
            raise
        except (LearnerLostError, TakenOverError):  # there is nothing to save, or it is no more ours to save
            raise
        except (Exception, SystemExit):
            self._keep()
            raise

    def _count_loss(self, error: LearnerLostError) -> None:
        """Raises LearnerLostError where it has come back too often."""
        self.losses += 1
        self.lost_at[self.step + 1] += 1
        at_one = self.lost_at[self.step + 1]
        if at_one < AT_ONE_STEP and self.losses <= MAX_RESTARTS:
            return
        often = f"{at_one} times at step {self.step + 1}" if at_one >= AT_ONE_STEP else f"{self.losses} times"
        raise LearnerLostError(
            f"{error}; the learner was lost {often} with no newer checkpoint made meanwhile "
            f"(the newest is that of step {self.furthest}), so the run gives up"
            if self.furthest >= 0
            else f"{error}; the learner was lost {often} before the first checkpoint, so the run gives up"
        ) from error

    def _keep(self) -> None:
        """Write a checkpoint at an end that nobody asked for, where the learner is whole; whether it was, is on record.

        The error that ended the run is the one to raise, whatever goes wrong here.
        """
        try:
            with contextlib.suppress(TrainingError):  # the update itself is what failed
                self._settle()
            if self.saved != self.step:
                self.save(ending=True)
        except (Exception, KeyboardInterrupt) as error:
            if self.saved == self.step:
                return
            message = f"no checkpoint could be made of step {self.step}: {type(error).__name__}: {error}"
            self.traffic.say(message)
            with contextlib.suppress(RunError):
                self.recorder.event("fault", message=message)

    def _settle(self) -> None:
        """Have the update under way be done, if there is one, and recorded."""
        self.traffic.cancel()
        try:
            update = self.traffic.settle()
        except RolloutsLostError:  # it had not begun to learn
            update = None
        if update is not None:
            self._learned(update, ending=True)

    def _train(self) -> None:
        self._publish()
        if self._evaluation_due() and not self._evaluated():  # a run that was stopped may owe the last one
            self.evaluate()
            if self.step == 0 and self.run.monitors.action == "roll_back":
                self.save()
        if self._alarmed():
            return self._heed()
        while self.step < self.run.steps:
            if self.stopping:
                return self._stop()
            self.state, self.started = "training", time.perf_counter()
            self._admit()
            self._learn(self._gather())  # no name here: it would hold the batch while the next one is sampled
            self._check_moved()
            if self._evaluation_due():
                self.evaluate()
            if self._alarmed():
                return self._heed()
            due = self.step == self.run.steps or self.step % self.run.checkpoints.every == 0
            if due or self.stages.learner.leaving():
                self.save()
        self.recorder.event("finished", step=self.step)
        self.state = "finished"

    def _check_moved(self) -> None:
        """End the run, with a checkpoint, where it trains on nothing. Raises TrainingError, which says why."""
        if why := movement.unmoved(self.moved):
            self.save()
            raise TrainingError(f"the run has stopped after step {self.step}, with a checkpoint: {why}")

    def _evaluation_due(self) -> bool:
        return self.step == self.run.steps or self.step % self.run.evaluation.every == 0

    def _evaluated(self) -> bool:
        """Whether the evaluation of this step is on record."""
        return any((row["kind"], row["step"]) == ("evaluation", self.step) for row in self.recorder.metrics())

    def _alarmed(self) -> bool:
        """Whether a monitor is to end the run."""
        return bool(self.alarms) and self.run.monitors.action != "warn"

    def _gather(self) -> list[Scored]:
        """The next batch, sampled and scored."""
        self.traffic.enter("sample_and_score")
        scored = self.traffic.gather(self.sampling[self.step + 1])
        self.traffic.phases.add("sample_and_score", self.started)
        return scored

    def _admit(self) -> None:
        """Set the samplers to work on every batch that may begin with the weights as they are now.

        Those after the last step are not sampled, and kept account of: a run that is made longer goes on with them.
        """
        while self.run.rollout.prompts <= self._capacity():
            self._begin(self.step + len(self.sampling) + 1, self.step)

    def _begin(self, step: int, version: int) -> None:
        """Sample the batch of a step with a version of the weights."""
        self.sampling[step] = training_tasks(self.run, self.prompts, step, version)
        if step <= self.run.steps:
            self.traffic.submit(self.sampling[step])

    def _capacity(self) -> int:
        """How many groups may be begun now: by their age when they are learned, and by the bytes they will take."""
        size, running = self.run.rollout.prompts, len(self.sampling)
        fresh = capacity(
            max_staleness=self.max_staleness,
            version=self.step,
            batch=size,
            accepted=self.step * size,
            running=running * size,
        )
        needed, room = (running + 1) * size * self.traffic.tally.largest, self.stages.room()
        if fresh < size or running == 0 or needed <= room:
            return fresh
        if not self.full:
            self.full = True
            self.recorder.event("full", needed=needed, room=room)
            self.traffic.say(
                f"{running + 1} batches would take {needed / 2**30:.2f} GiB of the object store, rollouts may take "
                f"{room / 2**30:.2f}: fewer are sampled ahead than rollout.max_staleness={self.max_staleness} allows"
            )
        return 0

    def _serve(self) -> None:
        """Say how the run is, and do what was asked of it."""
        self.noted.look()
        self._tell_meter()
        for request in self.stages.exchange(status.status(self)):
            self.recorder.event("asked", **request.asked)
            if request.max_staleness is not None:
                self.max_staleness = request.max_staleness
            if request.fault is not None:
                self.stages.disturb(request.fault)
            self._resize({"samplers": request.samplers, "scorers": request.scorers}, "asked for")
            self.stopping = self.stopping or request.stop
            self.done.append(request.id)

    def _resize(self, sizes: Mapping[str, int | None], why: str) -> None:
        now = {role: size.wanted for role, size in self.stages.sizes().items()}
        changed = {role: count for role, count in sizes.items() if count is not None and count != now[role]}
        if changed:
            self.stages.resize(**changed)
            self.recorder.event("resized", why=why, **changed)
            self.traffic.say(f"{why}: " + ", ".join(f"{role} {now[role]} -> {n}" for role, n in changed.items()))

    def _fit(self, phases: Phases, seconds: float) -> None:
        """Have as many workers as keep nobody waiting, where the config leaves it open; two steps must agree."""
        roles = {"samplers": self.run.workers.samplers, "scorers": self.run.workers.scorers}
        bounds = {role: (pool.min, pool.max) for role, pool in roles.items() if pool.max is not None}
        sizes = {role: size.wanted for role, size in self.stages.sizes().items()}
        seen = sizing.Seen(
            work={role: phases.busy.get(role, 0.0) for role in roles},
            learning=max(0.0, seconds - phases.wall.get("sample_and_score", 0.0)),
            groups=self.run.rollout.prompts,
            overlapped=self.max_staleness > 0,
        )
        wished = sizing.better(seen, sizes, bounds)
        if wished == self.steady:
            self._resize(wished, "to keep nobody waiting")
        self.steady = wished

    @property
    def _oldest(self) -> int:
        """The oldest version that a task under way asks for."""
        return min([self.step, *(task.version for tasks in self.sampling.values() for task in tasks)])

    def _publish(self) -> None:
        self.traffic.publish(oldest=self._oldest)

    def _learn(self, scored: Sequence[Scored]) -> None:
        self.remembered = {name: history.state() for name, history in self.histories.items()}
        batch = training_batch(self.run, scored, self.histories, self.step + 1)
        if not self.rounding and (line := rounding_warning(self.run, batch)):
            self.rounding = True
            self.recorder.event("rounding", step=self.step + 1, message=line)
            self.traffic.say(line)
        self.recorder.samples("scores.parquet", self.step + 1, score_columns(scored, batch))
        self.traffic.enter("learn")
        started = time.perf_counter()
        for attempt in range(1, MAX_RESTARTS + 1):
            self.updating = batch
            try:
                update = self.traffic.learn(self.step + 1, batch.groups)
                break
            except RolloutsLostError as lost:
                self.updating = None
                if attempt == MAX_RESTARTS:
                    raise
                self.recorder.event("fault", message=f"{lost}; they are sampled again")
                self.traffic.tally.count("samplers", "lost", "trajectories_gone", len(lost.places))
                batch = self._sampled_again(batch, lost.places)
        self.traffic.phases.add("learn", started)
        self._learned(update)

    def _sampled_again(self, batch: TrainingBatch, places: Sequence[int]) -> TrainingBatch:
        """The batch with new rollouts at these places: the same bits, as a task is a pure function."""
        tasks = [batch.groups[place].rollout.task for place in places]
        self.traffic.submit(tasks)
        found = dict(zip(places, self.traffic.gather(tasks), strict=True))
        groups = [
            replace(group, rollout=found[place].rollout) if place in found else group
            for place, group in enumerate(batch.groups)
        ]
        return replace(batch, groups=groups)

    def _rewind(self, lost: LearnerLostError) -> None:
        """Go back to the newest checkpoint, or the start, with a new learner; the samplers stay as they are."""
        self.learners_lost += 1
        self.traffic.cancel()
        self.traffic.checksums.clear()
        self.sampling.clear()
        self.updating = None
        self.stages.learner.recover()
        found = self.recorder.home.newest(self.traffic.say)
        self.step, self.saved, self.micro_batch = 0, None, None
        self.histories, self.remembered = make_histories(self.run), {}
        self.moved.clear()
        if found is not None:
            self.restore(found)
        self.recorder.rewind(self.step if found is not None else -1)
        message = f"{lost}; a new learner goes on after step {self.step}"
        self.recorder.event("fault", message=message, restarted="learner")
        self.traffic.say(message)

    def _learned(self, update: Update, *, ending: bool = False) -> None:
        """Count the update that has just been done, send its weights out, and record the step.

        Whatever becomes of the weights on their way, the step is on record. At the end of a run nobody needs them.
        """
        assert self.updating is not None
        batch, self.updating, self.remembered = self.updating, None, {}
        self.step = update.version
        del self.sampling[self.step]
        if self.step == 1:
            self.recorder.event("first_update", max_log_ratio=update.first_log_ratio)
        if update.micro_batch is not None:
            self.micro_batch = update.micro_batch.size
            self.recorder.event(
                "micro_batch", step=self.step, pairs=self.micro_batch, seconds_a_pair=update.micro_batch.seconds
            )
        try:
            if not ending:
                self._publish()
        finally:
            self._record_step(update, batch)

    def _record_step(self, update: Update, batch: TrainingBatch) -> None:
        seconds = time.perf_counter() - self.started
        phases, self.traffic.phases = self.traffic.phases, Phases()
        images = self.run.rollout.prompts * self.run.rollout.images
        ages = [self.step - 1 - group.rollout.task.version for group in batch.groups]
        row = {
            **batch.metrics,
            "version": self.step,
            "sample_age": float(np.mean(ages)),
            "oldest_sample": max(ages),
            "first_log_ratio": update.first_log_ratio,
            "loss": update.loss,
            **({} if update.kl is None else {"kl": update.kl}),
            "gradient_norm": update.gradient_norm,
            "skipped_gradients": update.skipped,
            "update_ratio": update.update_ratio,
            "moved_fraction": update.moved_fraction,
            **({} if update.importance is None else {"importance": update.importance}),
            **update.diagnostics["overall"],
            "per_timestep": update.diagnostics["per_timestep"],
            "seconds": seconds,
            "samples_per_second": images / seconds,
            "samples": self.step * images,
            "phase_seconds": phases.wall,
            "busy_seconds": phases.busy_in,
            "workers": {role: size.ready for role, size in self.stages.sizes().items()},
            **self.traffic.tally.step(self.step - 1, self.stages.sizes()["samplers"].workers),
            "idle": idle_fractions(self.stages.sizes(), phases.busy, seconds),
        }
        self._record("train", row)
        self.moved.append(self.last["train"])
        if update.skipped:
            self.recorder.event("skipped", step=self.step, gradients=update.skipped)
            self.traffic.say(
                f"step {self.step}: {update.skipped} optimizer steps skipped, as their gradient is not finite"
            )
        if self.run.workers.elastic:
            self._fit(phases, seconds)

    def evaluate(self) -> None:
        """Score the evaluation's prompts at the current version; the first and the last keep their pictures."""
        self.traffic.phases = Phases()  # an evaluation's work is no step's
        self.state, started = "evaluating", time.perf_counter()
        scored, seen, pictures = self._evaluated_whole()
        values = evaluation.table(self.run, scored)
        columns: dict[str, Any] = {
            "step": np.full(values[config.TOTAL].size, self.step),
            "prompt": [group.rollout.task.prompt.text for group in scored for _ in range(self.run.evaluation.images)],
            "position": np.repeat(np.arange(len(scored)), self.run.evaluation.images),
            "sample": np.tile(np.arange(self.run.evaluation.images), len(scored)),
            **{name: value.ravel() for name, value in values.items()},
        }
        self.recorder.samples("evaluations.parquet", self.step, columns)
        if pictures:
            self.recorder.pictures(self.step, pictures)
        if self.assessor is not None:
            self.assessor.keep(self.step, [group.measured for group in scored])
        measured = evaluation_summary(self.run, scored, seen, self.assessor)
        if self.step > 0:
            if self.first_scores is None:
                self.first_scores = records.evaluations(self.recorder.folder, 0)
            measured["changes"] = {
                name: intervals.change(self.first_scores[name], value) for name, value in values.items()
            }
        rows = [*self.recorder.metrics(), {"kind": "evaluation", "step": self.step, **measured}]
        self._raise(monitors.judge(self.run, rows).alarms, rows)
        phases, self.traffic.phases = self.traffic.phases, Phases()
        row = {
            **measured,
            "alarms": dict(self.alarms),
            "images": int(values[config.TOTAL].size) + sum(group.rollout.task.images for group in seen),
            "seconds": time.perf_counter() - started,
            "busy_seconds": phases.busy_in,
            "workers": {role: size.ready for role, size in self.stages.sizes().items()},
        }
        self._record("evaluation", row)
        self.recorder.push()

    def _evaluated_whole(self) -> tuple[list[Scored], list[Scored], list[np.ndarray]]:
        """An evaluation, with its pictures where they are to be kept; from the start again where some are gone."""
        for attempt in range(1, MAX_RESTARTS + 1):
            scored, seen = run_evaluation(
                self.run, self.traffic, self.held_out, self.step, oldest=self._oldest, prompts=self.prompts
            )
            if self.step not in (0, self.run.steps):
                break
            try:
                return scored, seen, [self.stages.fetch(group.rollout.images) for group in scored]
            except RolloutsLostError as lost:
                if attempt == MAX_RESTARTS:
                    raise
                self.recorder.event("fault", message=f"{lost}; the evaluation is made again")
        return scored, seen, []

    def _raise(self, alarms: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> None:
        """Tell of the alarms that were not there at the evaluation before."""
        before = [row["alarms"] for row in rows[:-1] if row["kind"] == "evaluation"]
        for name, text in alarms.items():
            if name not in before[-1]:
                self.recorder.event("alarm", step=self.step, monitor=name, text=text, action=self.run.monitors.action)
                self.traffic.say(f"ALARM at step {self.step}, {name}: {text}")
        self.alarms = alarms

    def _heed(self) -> None:
        """End the run as its monitors are told to, so that `error` says why and how to go on."""
        home, action, back = self.recorder.home, self.run.monitors.action, None
        if action == "roll_back":
            back = home.newest_until(monitors.judge(self.run, self.recorder.metrics()).healthy)
        if back is None:
            self.save()
        else:
            home.set_aside_after(back)
        self.error = f"{'; '.join(self.alarms.values())}: {monitors.advice(action, self.step, back)}"
        if back is None:
            self.recorder.event("stopped", step=self.step, alarm=self.error)
        else:
            self.recorder.event("rolled_back", step=self.step, to=back, alarm=self.error)
        self.state = "stopped"

    def _tell_meter(self) -> None:
        self.recorder.meter.status(
            RunNumbers(
                step=self.step,
                steps=self.run.steps,
                max_staleness=self.max_staleness,
                in_flight=len(self.traffic.ledger),
                pools=self.stages.sizes(),
                tasks=self.traffic.tally.tasks,
            )
        )

    def _record(self, kind: str, values: Mapping[str, Any]) -> None:
        self._tell_meter()
        try:
            self.last[kind] = self.recorder.record(kind, self.step, values)
        except RunError:  # a full disk; the checkpoint that ends the run may be on another one
            self.unwritten.append({"kind": kind, "step": self.step, "time": time.time(), **values})
            raise
        self.report(self.last[kind])

    def save(self, *, ending: bool = False) -> None:
        """Write a checkpoint of the current step, and let the oldest go. At an end records need not be stored first."""
        self.traffic.enter("checkpoint")
        started = time.perf_counter()
        histories = self.remembered or {name: history.state() for name, history in self.histories.items()}
        if ending:
            self.recorder.push()
        else:
            self.recorder.home.push_records()  # before: a checkpoint must not outrun what led to it
        begun = [(step, tasks[0].version) for step, tasks in self.sampling.items()]
        state = DriverState(
            step=self.step,
            histories=histories,
            micro_batch=self.micro_batch,
            begun=[(step, version) for step, version in begun if version < self.step],
            largest=self.traffic.tally.largest,
            max_staleness=self.max_staleness,
            rows=self.unwritten,
        )
        self.stages.learner.save(self.recorder.home, state)
        self.saved = self.step
        if self.step > self.furthest:
            self.furthest = self.step
            self.losses, self.lost_at = 0, Counter()
        self.recorder.event("checkpoint", step=self.step, seconds=time.perf_counter() - started)
        healthy = None
        if self.run.monitors.action == "roll_back":
            healthy = self.recorder.home.newest_until(monitors.judge(self.run, self.recorder.metrics()).healthy)
        self.recorder.home.prune(self.run.checkpoints.keep, healthy)

    def _stop(self) -> None:
        self._settle()
        if self.saved != self.step:
            self.save()
        self.recorder.event("stopped", step=self.step)
        self.state = "stopped"


def run_evaluation(
    run: config.Run, traffic: Dispatcher, held_out: PromptSource, version: int, *, oldest: int, prompts: PromptSource
) -> tuple[list[Scored], list[Scored]]:
    """The evaluation at a version that has been published, a group a prompt, and that of training prompts besides.

    Versions before `oldest` are not needed.
    """
    if run.optimizer.average is not None:
        traffic.publish(oldest=oldest, averaged=True)
    traffic.enter("evaluate")
    tasks = evaluation_tasks(run, held_out, version)
    count = len(tasks)
    tasks += watched_training_tasks(run, prompts, version)
    traffic.submit(tasks)
    scored = traffic.gather(tasks)
    return evaluation.by_prompt(scored[:count]), evaluation.by_prompt(scored[count:])


def evaluation_summary(
    run: config.Run, scored: Sequence[Scored], seen: Sequence[Scored], assessor: quality.Assessor | None
) -> dict[str, Any]:
    """An evaluation in numbers: its `prompts`, their `rewards`, those of training prompts besides, `quality`."""
    found: dict[str, Any] = {"prompts": len(scored), "rewards": _estimates(run, scored)}
    if seen:
        found["train_rewards"] = _estimates(run, seen)
    if assessor is not None:
        found["quality"] = assessor([group.measured for group in scored])
    return found


def _estimates(run: config.Run, scored: Sequence[Scored]) -> dict[str, dict[str, float | None]]:
    return {name: intervals.estimate(value).row() for name, value in evaluation.table(run, scored).items()}


def idle_fractions(sizes: Mapping[str, PoolStatus], busy: Mapping[str, float], seconds: float) -> dict[str, float]:
    """The share of its workers' time that each role did not work."""
    counts = {**{role: max(1, size.ready) for role, size in sizes.items()}, "learner": 1}
    return {role: max(0.0, 1 - busy.get(role, 0.0) / (count * seconds)) for role, count in counts.items()}
