"""The loop: prompts go to samplers, samplers make images and trajectories, scorers score the images, scores become
advantages, the learner applies the credit-weighted update, and its new weights go back to the samplers.

Who waits for whom:

    admit ---tasks---> samplers ---rollouts---> scorers ---scores---> gather
                          ^                                             |
                          | weights                             training batch
                          |                                             v
                       publish <--------------update--------------- learner

Samplers wait for tasks, and for the weights that a task names. Scorers wait for rollouts. The loop waits in `gather`
for scores and in `learn` for the update; meanwhile the dispatcher goes on moving groups, and requests are served.
Batches that staleness allows are admitted ahead of the one that is learned: they do not wait for the next `publish`.
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pcpo_ray import config
from pcpo_ray.data.prompts import PromptSource
from pcpo_ray.data.records import EvaluationRecord, Record, StepRecord
from pcpo_ray.data.types import Scored
from pcpo_ray.data.updates import Update
from pcpo_ray.errors import ClusterError, LearnerLostError, RolloutsLostError, RunError, TakenOverError, TrainingError
from pcpo_ray.process import signals
from pcpo_ray.training.admission import Admission
from pcpo_ray.training.batch import BatchMaker, TrainingBatch
from pcpo_ray.training.callbacks import Audience, Callback
from pcpo_ray.training.checkpointer import Checkpointer
from pcpo_ray.training.control import Control
from pcpo_ray.training.dispatcher import Dispatcher, Phases, Watch, trouble
from pcpo_ray.training.evaluator import Evaluator
from pcpo_ray.training.progress import Progress
from pcpo_ray.training.recorder import Recorder, check_never_saved
from pcpo_ray.training.restarts import MAX_RESTARTS, Restarts
from pcpo_ray.training.stages import Stages
from pcpo_ray.training.step_record import step_record
from pcpo_ray.workers.learner import movement


class Loop:
    """One run, from a state to its last step.

    `report` gets every line recorded, `say` what a user should read, `watch` how far a phase has come. `callbacks` see
    every record, at moments at which an error of theirs costs nothing that was learned.
    """

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
        watch: Watch | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.run, self.stages, self.recorder, self.say = run, stages, recorder, say
        self._report, self.audience = report, Audience(callbacks)
        self.progress = progress = Progress(max_staleness=run.rollout.max_staleness)
        self.restarts = Restarts()
        self.lost: LearnerLostError | None = None  # while a resumed run's checkpoint was restored
        self.updating: TrainingBatch | None = None
        """The batch that the learner is at work on."""
        self.moved: deque[Mapping[str, Any]] = deque(maxlen=movement.PATIENCE)
        """The newest steps on record, from which `movement.unmoved` tells whether anything is trained."""
        self.started = time.perf_counter()
        self.noted = signals.Noted()
        self.dispatcher = dispatcher = Dispatcher(
            run, stages, event=self._event, say=say, serve=self._serve, entered=recorder.meter.phase, watch=watch
        )
        parts = (run, stages, recorder, dispatcher, progress)
        self.admission = Admission(run, stages, dispatcher, progress, prompts, recorder.event)
        self.batches = BatchMaker(run, recorder, say)
        self.control = Control(*parts)
        self.checkpointer = Checkpointer(*parts, batches=self.batches, admission=self.admission, restarts=self.restarts)
        self.evaluator = Evaluator(
            *parts, prompts=prompts, held_out=held_out, write=self._write, checkpointer=self.checkpointer
        )

    # -- the loop -------------------------------------------------------------------------------------------------

    def _train(self) -> None:
        """Take the steps that are left, or those until an alarm or a request ends the run."""
        progress, evaluator = self.progress, self.evaluator
        self.dispatcher.publish(oldest=self.progress.oldest)
        if not evaluator.recalled():  # a run that was stopped may owe the last one
            evaluator.evaluate()
            if progress.step == 0 and self.run.monitors.action == "roll_back":
                self.checkpointer.save_unsaved()
        self._tell()
        if evaluator.ends_run:
            return evaluator.stop_on_alarm()
        while progress.step < self.run.steps:
            if progress.stopping:
                return self._stop()
            progress.state, self.started = "training", time.perf_counter()
            self.admission.admit()
            scored = self._gather()
            batch = self.batches.make(scored, progress.step + 1)
            update = self._learn(batch)
            try:
                self.dispatcher.publish(oldest=self.progress.oldest)
            finally:  # whatever becomes of the weights on their way, the step is on record
                self._record(batch, update)
            del scored, batch, update  # their memory is for what is sampled next
            self._check_moved()
            if evaluator.due:
                evaluator.evaluate()
            if evaluator.ends_run:
                return evaluator.stop_on_alarm()
            if self.checkpointer.due:
                self.checkpointer.save()
            self._tell()
        self.recorder.event("finished", step=progress.step)
        progress.state = "finished"

    def _gather(self) -> list[Scored]:
        """Wait for the next batch to be sampled and scored."""
        self.dispatcher.enter("sample_and_score", self.progress.step + 1)
        scored = self.dispatcher.gather(self.progress.begun[self.progress.step + 1])
        self.dispatcher.phases.add("sample_and_score", self.started)
        return scored

    def _learn(self, batch: TrainingBatch) -> Update:
        """Have the learner do the next update; groups whose trajectories are gone are sampled again."""
        self.dispatcher.enter("learn", self.progress.step + 1)
        started = time.perf_counter()
        for attempt in range(1, MAX_RESTARTS + 1):
            self.updating = batch
            try:
                update = self.dispatcher.learn(self.progress.step + 1, batch.groups)
                break
            except RolloutsLostError as lost:
                self.updating = None
                if attempt == MAX_RESTARTS:
                    raise
                self.recorder.event("fault", message=f"{lost}; they are sampled again")
                self.dispatcher.counters.count("samplers", "lost", "trajectories_gone", len(lost.places))
                batch = replace(batch, groups=self.dispatcher.sampled_again(batch.groups, lost.places))
        self.dispatcher.phases.add("learn", started)
        self._advance(update)
        return update

    def _advance(self, update: Update) -> None:
        """Count an update that is done: its batch is learned, and the weights have a new version."""
        self.updating = None
        self.batches.learned()
        self.progress.step = step = update.version
        del self.progress.begun[step]
        if update.micro_batch is not None:
            self.progress.micro_batch = update.micro_batch.size

    def _record(self, batch: TrainingBatch, update: Update) -> None:
        """Record a step, and have the pools fit what it took."""
        seconds = time.perf_counter() - self.started
        phases, self.dispatcher.phases = self.dispatcher.phases, Phases()
        record = step_record(
            self.run,
            batch,
            update,
            seconds=seconds,
            phases=phases,
            counters=self.dispatcher.counters,
            pools=self.stages.pool_status(),
        )
        self._write(record)
        self.moved.append(record.values())
        if record.step == 1:
            self.recorder.event("first_update", max_log_ratio=update.first_log_ratio)
        if (tried := update.micro_batch) is not None:
            self.recorder.event("micro_batch", step=record.step, pairs=tried.size, seconds_a_pair=tried.seconds)
        if update.skipped:
            self.recorder.event("skipped", step=record.step, gradients=update.skipped)
            self.say(f"step {record.step}: {update.skipped} optimizer steps skipped, as their gradient is not finite")
        if self.run.workers.elastic:
            self.control.fit(phases, seconds)

    def _write(self, record: Record) -> None:
        """Record a line of metrics.jsonl, and give it to the metrics and to whoever watches."""
        self.control.report()
        try:
            row = self.recorder.record(record.kind, record.step, record.values())
        except BaseException:  # a full disk: the checkpoint that ends the run may be on another one
            self.progress.unwritten.append(record.row(time.time()))
            raise
        match record:
            case StepRecord():
                self.progress.last_step = record
                self.audience.untold.append(record)
            case EvaluationRecord():
                self.progress.last_evaluation = record
                self.audience.untold.append(record)
        self.recorder.meter.record(record)
        if self.recorder.notifier is not None:
            self.recorder.notifier.record(record)
        self._report(row)
        self.dispatcher.spoke()

    def _tell(self) -> None:
        """Have the callbacks see what was recorded; one that answers STOP ends the run before its next step."""
        self.progress.stopping |= self.audience.tell()

    def _check_moved(self) -> None:
        """Raise TrainingError, after a checkpoint, where the run trains on nothing; the error says why."""
        if why := movement.unmoved(self.moved, self.run.optimizer):
            self.checkpointer.save_unsaved()
            raise TrainingError(f"the run has stopped after step {self.progress.step}, with a checkpoint: {why}")

    def _serve(self) -> None:
        """Have a signal take effect, and serve requests; the dispatcher calls this while it waits."""
        self.noted.look()
        self.control.serve()

    def _event(self, kind: str, **details: Any) -> None:
        """Record an event; the user is told first of one that is trouble, as the disk may be full."""
        if line := trouble(kind, details):
            self.say(line)
        self.recorder.event(kind, **details)

    # -- faults and endings ---------------------------------------------------------------------------------------

    def restore(self, step: int) -> None:
        """Continue from the checkpoint of a step. A learner that is lost meanwhile is replaced by `train`."""
        self.progress.step = self.progress.saved = step
        self.restarts.restored(step)
        try:
            self._restore(step)
        except LearnerLostError as error:
            self.restarts.add(error, step + 1)
            self.lost = error

    def _restore(self, step: int) -> None:
        self.checkpointer.restore(step)
        self.moved.clear()  # taken from the record: a resumed run ends where an undisturbed one would
        steps = (row for row in self.recorder.metrics() if row["kind"] == "train")
        self.moved.extend(row for row in steps if row["step"] <= self.progress.step)

    def train(self) -> None:
        """Run to the last step. A KeyboardInterrupt ends it after the update in progress, with a checkpoint."""
        try:
            with signals.noted() as self.noted:
                self._train_on()
            self._tell()
        except Exception as error:
            self.progress.state, self.progress.error = "failed", str(error)
            raise
        finally:
            status = self.control.status()
            self.recorder.status(status.row(), at_once=True)
            self.stages.end(status)

    def _train_on(self) -> None:
        """Train, past every learner that is lost; whatever ends the run, what was learned is kept."""
        try:
            lost, self.lost = self.lost, None
            self.progress.paced |= lost is None
            while True:
                try:
                    if lost is not None:  # the new learner may be lost as well
                        self._rewind(lost)
                        lost = None  # its traceback holds a batch
                    return self._train()
                except LearnerLostError as error:
                    self.restarts.add(error, self.progress.step + 1)
                    lost = error
        except KeyboardInterrupt:
            self._stop()
            raise
        except (LearnerLostError, TakenOverError):  # there is nothing to save, or it is no more ours to save
            raise
        except (Exception, SystemExit) as error:
            with contextlib.suppress(RunError):  # before: what is lost may end this process while it saves
                self.recorder.event("ending", error=str(error))
            self._keep()
            raise

    def _rewind(self, lost: LearnerLostError) -> None:
        """Go back to the newest checkpoint, or the start, with a new learner; samplers and requests stay."""
        progress = self.progress
        progress.learners_lost += 1
        progress.recovering = True
        self.dispatcher.cancel()
        self.dispatcher.checksums.clear()
        progress.begun.clear()
        self.updating = None
        self.stages.learner.recover(self._serve)
        found = self.recorder.home.newest(self.say)
        progress.micro_batch = None
        self.batches.reset()
        self.moved.clear()
        if found is None:
            check_never_saved(self.recorder.home)
            progress.step, progress.saved = 0, None
        else:
            self._restore(found)
        progress.recovering = False
        self.recorder.rewind(progress.step if found is not None else -1)
        self._event("fault", message=f"{lost}; a new learner goes on after step {progress.step}", restarted="learner")

    def _stop(self) -> None:
        """End the run because somebody asked for it, with a checkpoint."""
        if self.stages.learner.updating():  # which may take minutes
            self.say("stopping: the update under way is finished first, then a checkpoint is written")
        self._settle()
        self.checkpointer.save_unsaved(ending=True)
        self.recorder.event("stopped", step=self.progress.kept)
        self.progress.state = "stopped"

    def _keep(self) -> None:
        """Write a checkpoint at an end that nobody asked for, or record why none could be made.

        The error that ended the run is the one to raise, whatever goes wrong here.
        """
        try:
            self._settle()
            self.checkpointer.save_unsaved(ending=True)
        except (Exception, KeyboardInterrupt) as error:
            if self.progress.unsaved:
                with contextlib.suppress(RunError):
                    why = f"{type(error).__name__}: {error}"
                    self._event("fault", message=f"no checkpoint could be made of step {self.progress.step}: {why}")

    def _settle(self) -> None:
        """Have the update under way end, if there is one, and record it; nobody needs its weights any more."""
        self.dispatcher.cancel()
        try:
            update = self.dispatcher.settle()
        except RolloutsLostError:  # it had not begun to learn
            return
        except ClusterError:  # the learner is lost, or does not come back
            raise
        except Exception as error:  # it is made again after a resume; a checkpoint of half an update is refused
            with contextlib.suppress(RunError):
                self._event("fault", message=f"the update under way failed: {error}")
            return
        if update is not None:
            assert self.updating is not None
            batch = self.updating
            self._advance(update)
            with contextlib.suppress(RunError):  # a full disk: the checkpoint has the row, and may be on another one
                self._record(batch, update)
