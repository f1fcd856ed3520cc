"""Checkpointer: writes the checkpoints of a run, and takes a run up again from one."""

import contextlib
import time

from pcpo_ray import config
from pcpo_ray.data.updates import DriverState
from pcpo_ray.errors import RunError
from pcpo_ray.runs import lines
from pcpo_ray.training import monitors
from pcpo_ray.training.admission import Admission
from pcpo_ray.training.batch import BatchMaker
from pcpo_ray.training.dispatcher import Dispatcher
from pcpo_ray.training.progress import Progress
from pcpo_ray.training.recorder import Recorder
from pcpo_ray.training.restarts import Restarts
from pcpo_ray.training.stages import Stages


class Checkpointer:
    """Saves and restores the learner's state and the driver's."""

    def __init__(
        self,
        run: config.Run,
        stages: Stages,
        recorder: Recorder,
        dispatcher: Dispatcher,
        progress: Progress,
        *,
        batches: BatchMaker,
        admission: Admission,
        restarts: Restarts,
    ) -> None:
        self.run, self.stages, self.recorder = run, stages, recorder
        self.dispatcher, self.progress = dispatcher, progress
        self.batches, self.admission, self.restarts = batches, admission, restarts

    @property
    def due(self) -> bool:
        """True at the last step, every so many steps, and when the learner's machine is about to leave."""
        step = self.progress.step
        return step == self.run.steps or step % self.run.checkpoints.every == 0 or self.stages.learner.leaving()

    def save(self, *, ending: bool = False) -> None:
        """Write a checkpoint of the current step, and let the oldest go. When `ending`, records may be stored later."""
        progress, home = self.progress, self.recorder.home
        self.dispatcher.enter("checkpoint", self.progress.step)
        started = time.perf_counter()
        histories = self.batches.state()
        if ending:
            with contextlib.suppress(RunError):  # a full disk
                self.recorder.push()
        else:
            home.push_records()  # before: a checkpoint must not outrun what led to it
        begun = [(step, tasks[0].version) for step, tasks in progress.begun.items()]
        state = DriverState(
            step=progress.step,
            histories=histories,
            micro_batch=progress.micro_batch,
            begun=[(step, version) for step, version in begun if version < progress.step],
            largest=self.dispatcher.counters.largest,
            max_staleness=progress.max_staleness,
            rows=lines.plain(progress.unwritten),
        )
        self.stages.learner.save(home, state)
        if ending:  # that storage was away for a moment must not leave the records behind the checkpoint
            with contextlib.suppress(RunError):
                self.recorder.push()
        progress.saved = progress.step
        self.restarts.saved(progress.step)
        self.recorder.event("checkpoint", step=progress.step, seconds=time.perf_counter() - started)
        home.prune(self.run.checkpoints.keep, progress.step, self.newest_healthy())

    def save_unsaved(self, *, ending: bool = False) -> None:
        """Write a checkpoint of the current step, unless there is one."""
        if self.progress.unsaved:
            self.save(ending=ending)

    def newest_healthy(self) -> int | None:
        """Find the newest checkpoint from before any trouble, for a run that rolls back to it; else None."""
        if self.run.monitors.action != "roll_back":
            return None
        return self.recorder.home.newest_until(monitors.judge(self.run, self.recorder.metrics()).healthy)

    def restore(self, step: int) -> None:
        """Continue from the checkpoint of a step."""
        progress, counters, home = self.progress, self.dispatcher.counters, self.recorder.home
        state = self.stages.learner.restore(home, step)
        progress.step = progress.saved = state.step
        self.restarts.restored(state.step)
        progress.micro_batch = state.micro_batch
        if state.max_staleness is not None and not progress.paced:
            progress.max_staleness = state.max_staleness
        progress.paced = True
        counters.largest = max(counters.largest, state.largest)
        self.batches.restore(state.histories)
        for row in state.rows:
            self.recorder.put_back(row)
        for version in state.older:
            self.dispatcher.republish(home, step, version)
        for begun, version in state.begun:
            self.admission.begin(begun, version)
        self.recorder.event("resumed", step=progress.step, checkpoint=home.checkpoint(step).name)
