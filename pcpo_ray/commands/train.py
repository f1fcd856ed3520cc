"""`pcpo-ray train`: start or resume a run, train it to its end, and write its page."""

import contextlib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from pcpo_ray import config
from pcpo_ray.commands import opening, session
from pcpo_ray.commands.progress import Display
from pcpo_ray.commands.report.page import write
from pcpo_ray.commands.report.verdict import Verdict, verdict
from pcpo_ray.config import files, paths
from pcpo_ray.data.prompts import said
from pcpo_ray.errors import AlarmError, ConfigError, RunError, TakenOverError
from pcpo_ray.process.signals import ended
from pcpo_ray.runs.folder import RunFolder
from pcpo_ray.runs.places import folder_below
from pcpo_ray.runs.records import read_record
from pcpo_ray.training.loop import Loop
from pcpo_ray.training.recorder import Recorder
from pcpo_ray.training.stages import Stages


@dataclass(frozen=True, kw_only=True)
class Order:
    """The arguments of `pcpo-ray train`."""

    config: Path
    overrides: Sequence[str] = ()
    local: bool = False
    resume: bool = False
    resume_if_started: bool = False
    runs: str = "runs"
    metrics_port: int | None = None

    @property
    def continuing(self) -> str:
        """The command that continues the run."""
        options = [*(["--local"] if self.local else []), *([] if self.runs == "runs" else ["--runs", self.runs])]
        return shlex.join(["pcpo-ray", "train", str(self.config), *self.overrides, *options, "--resume"])


def train(order: Order) -> None:
    """Train a run and print its verdict. Raises a PcpoError, AlarmError if the run's monitors ended it."""
    if order.resume and order.resume_if_started:
        raise ConfigError("got --resume and --resume-if-started; give one of them")
    run = paths.absolute(files.load(order.config, order.overrides))
    home = folder_below(order.runs, run.name)
    home.check_lasting()
    resumed = order.resume or (order.resume_if_started and home.started())
    console = Console()
    display = Display(run, console)
    with ended(display.say) as signals:
        with display, contextlib.ExitStack() as ending:
            with signals.kept():
                ending.enter_context(session.begun(run, local=order.local, say=display.say))
            recorder, step = _open(home, run, display, resumed=resumed)
            ending.callback(recorder.close)
            alarm = _run(order, run, recorder, step, display, ending, resumed=resumed)
        judged, page = _report(recorder.home, display)
    for line in (judged.text, *judged.notes, f"report: {page}"):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if alarm:
        raise AlarmError(alarm)


def _open(home: RunFolder, run: config.Run, display: Display, *, resumed: bool) -> tuple[Recorder, int | None]:
    """Open the run's folder; returns its recorder and the step to continue from, None for the beginning."""
    if resumed:
        recorder, step = opening.resume(home, run, display.say)
    else:
        recorder, step = opening.create(home, run, display.say), None
    display.failed = recorder.trouble
    recorder.say = display.say
    if home.working_copy is not None:
        display.say(home.working_copy)
    return recorder, step


def _run(
    order: Order,
    run: config.Run,
    recorder: Recorder,
    step: int | None,
    display: Display,
    ending: contextlib.ExitStack,
    *,
    resumed: bool,
) -> str | None:
    """Start the workers and train; returns the alarm that ended the run, if one did. Records how it ended."""
    started = False
    try:
        stages = _start(order, run, recorder, display)
        started = True
        ending.callback(stages.close)
        return _loop(order, run, recorder, step, stages, display)
    except KeyboardInterrupt:
        try:
            recorder.push()
        except RunError as error:
            display.say(str(error))
        display.say(f"stopped; continue with: {order.continuing}")
        raise
    except Exception as error:
        with contextlib.suppress(RunError):  # the disk may be full, which is then what failed
            recorder.event("failed", error=str(error))
            recorder.push()
        if not started and not resumed:  # the same command must work once the cause is mended
            recorder.close()
            with contextlib.suppress(TakenOverError):
                recorder.home.discard()
        raise


def _start(order: Order, run: config.Run, recorder: Recorder, display: Display) -> Stages:
    """Start metrics, trackers and the workers."""
    recorder.meter = session.meter(run, local=order.local, port=order.metrics_port, say=display.say)
    recorder.start_trackers()
    display.say("starting " + ("in this process" if order.local else "workers on Ray"))
    return session.stages(run, local=order.local, say=display.say, announced=True)


def _loop(
    order: Order, run: config.Run, recorder: Recorder, step: int | None, stages: Stages, display: Display
) -> str | None:
    """Train from a checkpoint's step, or from the beginning; returns the alarm that ended the run, if one did."""
    prompts, held_out = session.sources(run)
    lines = said(run, prompts, held_out)
    for line in lines:
        display.say(line)
    recorder.event("started", **session.surroundings(order.local), prompts=lines)
    loop = Loop(run, stages, recorder, prompts=prompts, held_out=held_out, report=display.row, say=display.say)
    if step is not None:
        loop.restore(step)
        display.say(f"resuming {run.name} after step {loop.progress.step}")
    with session.frozen():
        loop.train()
    return loop.progress.error


def _report(home: RunFolder, display: Display) -> tuple[Verdict, Path]:
    """Write the run's page and store it; returns the verdict and the page's path."""
    try:
        home.check()
        judged, page = verdict(read_record(home.local)), write(home.local)
        home.push_records()
    except KeyboardInterrupt:
        display.say(f"the run is whole, its page is not; write it with: pcpo-ray report {shlex.quote(home.place)}")
        raise
    return judged, page
