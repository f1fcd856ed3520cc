"""`pcpo-ray train`: start or resume a run, train it to its end, and write its page."""

import contextlib
import shlex

from pcpo_ray import config
from pcpo_ray.commands import opening, results, session
from pcpo_ray.commands.begin import Order
from pcpo_ray.commands.progress import Display
from pcpo_ray.commands.report.page import write
from pcpo_ray.commands.results import RunResult
from pcpo_ray.data.prompts import said
from pcpo_ray.errors import RewardError, RunError, TakenOverError
from pcpo_ray.process.signals import Ending
from pcpo_ray.runs.folder import RunFolder
from pcpo_ray.runs.lines import counted
from pcpo_ray.runs.places import folder_below
from pcpo_ray.training import status
from pcpo_ray.training.loop import Loop
from pcpo_ray.training.recorder import Recorder
from pcpo_ray.training.stages import Stages


def train(order: Order, display: Display, signals: Ending) -> RunResult:
    """Train a run to its end and write its page. Raises a PcpoError.

    A run that its monitors ended is returned as any other; its `alarm` says why.
    """
    run = order.run
    home = folder_below(order.runs, run.name)
    home.check_lasting()
    resumed = order.resume is True or (order.resume == "if_started" and home.started())
    with contextlib.ExitStack() as ending:
        with signals.kept():
            ending.enter_context(session.begun(run, local=order.local, say=display.say, phase=display.phase))
        recorder, step = _open(home, run, display, resumed=resumed)
        recorder.again = order.continuing
        ending.callback(recorder.close)
        if (
            step == run.steps and results.of(recorder.home).ending == "finished"
        ):  # as a job that is started again may be
            display.say(f"{home.place} has done all of its {counted(run.steps, 'step')}: no worker is started")
        else:
            recorder.status(status.starting(run).row(), at_once=True)
            _run(order, recorder, step, display, ending, resumed=resumed)
            display.phase("ending the workers")
    _report(recorder.home, display)
    found = results.of(recorder.home)
    display.phase(_ended(found))
    return found


def _ended(found: RunResult) -> str:
    if found.alarm:
        return "stopped by its monitors"
    return f"stopped after step {found.step}" if found.ending == "stopped" else "finished"


def _open(home: RunFolder, run: config.Run, display: Display, *, resumed: bool) -> tuple[Recorder, int | None]:
    """Open the run's folder; returns its recorder and the step to continue from, None for the beginning."""
    display.phase("opening the run's folder")
    if resumed:
        recorder, step = opening.resume(home, run, display.say)
        display.known(recorder.metrics())
    else:
        recorder, step = opening.create(home, run, display.say), None
    display.failed = recorder.trouble
    recorder.say = display.say
    if home.working_copy is not None:
        display.say(home.working_copy)
    return recorder, step


def _run(
    order: Order,
    recorder: Recorder,
    step: int | None,
    display: Display,
    ending: contextlib.ExitStack,
    *,
    resumed: bool,
) -> None:
    """Start the workers and train. Records how the run ended."""
    started = False
    try:
        stages = _start(order, recorder, display)
        started = True
        ending.callback(stages.close)
        _loop(order, recorder, step, stages, display)
    except KeyboardInterrupt:
        try:
            if not started:  # the loop, which records it otherwise, had not begun
                recorder.event("stopped", step=step or 0)
            recorder.push()
        except RunError as error:
            display.say(str(error))
        display.say(f"stopped; continue with: {order.continuing}")
        raise
    except Exception as error:
        if not isinstance(error, TakenOverError):  # then the run goes on elsewhere
            with contextlib.suppress(RunError):  # the disk may be full, which is then what failed
                recorder.event("failed", error=str(error))
                recorder.push()
        if not resumed and (not started or _scored_nothing(error, recorder)):  # the same command must work once fixed
            recorder.close()
            with contextlib.suppress(TakenOverError):
                recorder.home.discard()
        raise


def _scored_nothing(error: Exception, recorder: Recorder) -> bool:
    """Return whether a reward ended a run before anything was learned."""
    return isinstance(error, RewardError) and not any(row["kind"] == "train" for row in recorder.metrics())


def _start(order: Order, recorder: Recorder, display: Display) -> Stages:
    """Start metrics, trackers and the workers."""
    run = order.run
    recorder.meter = session.meter(run, local=order.local, port=order.metrics_port, say=display.say)
    recorder.start_trackers()

    def phase(text: str) -> None:
        display.phase(text)
        recorder.status(status.starting(run, text).row())

    return session.stages(run, local=order.local, say=display.say, phase=phase, announced=True)


def _loop(order: Order, recorder: Recorder, step: int | None, stages: Stages, display: Display) -> None:
    """Train from a checkpoint's step, or from the beginning."""
    run = order.run
    prompts, held_out = session.sources(run)
    lines = said(run, prompts, held_out)
    for line in (*lines, *session.warnings(run), *session.notes(run, local=order.local)):
        display.say(line)
    recorder.event("started", **session.surroundings(order.local), prompts=lines)
    loop = Loop(
        run,
        stages,
        recorder,
        prompts=prompts,
        held_out=held_out,
        report=display.row,
        say=display.say,
        watch=display.watch,
        callbacks=order.callbacks,
    )
    if step is not None:
        loop.restore(step)
        display.say(f"resuming {run.name} after step {loop.progress.step}")
    try:
        with session.frozen():
            loop.train()
    except Exception as error:
        if not isinstance(error, TakenOverError) and (saved := loop.progress.saved) is not None:
            display.say(f"step {saved} is saved; once that is fixed, continue with: {order.continuing}")
        raise


def _report(home: RunFolder, display: Display) -> None:
    """Write the run's page and store it."""
    display.phase("writing the report")
    try:
        home.check()
        write(home.local)
        home.push_records()
    except KeyboardInterrupt:
        written = f"pcpo-ray report {shlex.quote(home.place)}"
        display.say(f"the run is complete, but its report is not written; write it with: {written}")
        raise
