"""pcpo-ray train | evaluate | sample | report | plan | study | bench, and the commands of `operate.py`."""

import contextlib
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pcpo_ray import __version__
from pcpo_ray.commands import bench, operate
from pcpo_ray.errors import AlarmError, ConfigError, PcpoError, RunError, TakenOverError
from pcpo_ray.process import terminal
from pcpo_ray.runs.lines import shown

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Aligns text-to-image diffusion and flow models with PCPO (arXiv 2509.25774) on Ray.",
)

Overrides = Annotated[list[str] | None, typer.Argument(help="Overrides of the config, each a.b.c=value.")]
RunPlace = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's folder or URL, such as runs/shapes-pcpo, s3://bucket/runs/mine.")
]
Local = Annotated[bool, typer.Option("--local", help="Run in this process, without Ray.")]


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="A YAML config, such as configs/shapes_pcpo.yaml.")],
    overrides: Overrides = None,
    local: Local = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest whole checkpoint.")] = False,
    resume_if_started: Annotated[
        bool, typer.Option("--resume-if-started", help="Continue the run if its folder is there, else start it.")
    ] = False,
    runs: Annotated[
        str, typer.Option(help="Where run folders are: a path, or a URL of storage such as s3://bucket/runs.")
    ] = "runs",
    metrics_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="With --local: where Prometheus finds the run's metrics; 0 is any port."),
    ] = None,
) -> None:
    """Train a model; the run's folder is RUNS/<name>."""
    from pcpo_ray.commands import session as running
    from pcpo_ray.commands.progress import Display
    from pcpo_ray.commands.report.page import read, verdict, write
    from pcpo_ray.config import files, paths
    from pcpo_ray.data.prompts import said
    from pcpo_ray.process.signals import ended
    from pcpo_ray.runs.folder import RunFolder
    from pcpo_ray.runs.storage import is_url
    from pcpo_ray.training.loop import Loop

    if resume and resume_if_started:
        raise ConfigError("got --resume and --resume-if-started; give one of them")
    run = paths.absolute(files.load(config, overrides or []))
    home = RunFolder.below(runs if is_url(runs) else os.path.expanduser(runs), run.name)
    folder = home.local
    if home.url is None and "working_dir_files" in folder.resolve().parts:
        raise RunError(
            f"the run folder {folder} would lie in a job's copy of the working folder, which Ray deletes after the "
            "job; give --runs an absolute path that all machines of the cluster share, or a URL such as "
            "s3://bucket/runs"
        )
    resume = resume or (resume_if_started and home.started())
    console = Console()
    display = Display(run, console)
    with ended(display.say) as signals:
        with display, contextlib.ExitStack() as ending:
            with signals.kept():
                ending.enter_context(running.begun(run, local=local, say=display.say))
            recorder, found = running.resume(folder, run, display.say, url=home.url) if resume else (None, None)
            if recorder is None:
                recorder = running.create(home, run, display.say)
            display.failed = recorder.trouble
            recorder.say = display.say
            if home.url is not None:
                display.say(f"{home.place} is worked on in {folder}")
            ending.callback(recorder.close)
            stages = None
            try:
                recorder.meter = running.meter(run, local=local, port=metrics_port, say=display.say)
                recorder.start_trackers()
                display.say("starting " + ("in this process" if local else "workers on Ray"))
                stages = running.stages(run, local=local, say=display.say, announced=True)
                ending.callback(stages.close)
                prompts, held_out = running.sources(run)
                told = said(run, prompts, held_out)
                for line in told:
                    display.say(line)
                recorder.event("started", **running.surroundings(local), prompts=told)
                loop = Loop(
                    run, stages, recorder, prompts=prompts, held_out=held_out, report=display.row, say=display.say
                )
                if found is not None:
                    loop.restore(found)
                    display.say(f"resuming {run.name} after step {loop.progress.step}")
                with running.frozen():
                    loop.train()
                alarm = loop.progress.error
            except KeyboardInterrupt:
                options = [*(["--local"] if local else []), *([] if runs == "runs" else ["--runs", runs])]
                again = shlex.join(["pcpo-ray", "train", str(config), *(overrides or []), *options, "--resume"])
                try:
                    recorder.push()
                except RunError as error:
                    display.say(str(error))
                display.say(f"stopped; continue with: {again}")
                raise
            except Exception as error:
                with contextlib.suppress(RunError):  # a full disk, which is what failed
                    recorder.event("failed", error=str(error))
                    recorder.push()
                if stages is None and not resume:  # nothing started: once mended, the same command must work
                    recorder.close()
                    with contextlib.suppress(TakenOverError):
                        recorder.home.discard()
                raise
        try:
            recorder.home.check()
            found_out, page = verdict(read(folder)), write(folder)
            recorder.home.push_records()
        except KeyboardInterrupt:
            display.say(f"the run is whole, its page is not; write it with: pcpo-ray report {shlex.quote(home.place)}")
            raise
    for line in (found_out["text"], *found_out["notes"], f"report: {page}"):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if alarm:
        raise AlarmError(alarm)


@app.command()
def evaluate(folder: RunPlace, overrides: Overrides = None, local: Local = False) -> None:
    """Evaluate a run's newest checkpoint; prints means, 95% intervals and the pictures' quality.

    Overrides, such as evaluation.count=256 or sampling.guidance_scale=3, change how it is evaluated, not the run.
    """
    from pcpo_ray.commands import session as running
    from pcpo_ray.rewards import quality
    from pcpo_ray.runs import records
    from pcpo_ray.runs.folder import RunFolder
    from pcpo_ray.training import inputs
    from pcpo_ray.training.dispatcher import Dispatcher, trouble
    from pcpo_ray.training.evaluation import evaluation_summary, run_evaluation

    console = Console(markup=False, highlight=False, soft_wrap=True)
    with contextlib.ExitStack() as ending:
        home = ending.enter_context(RunFolder.of(folder).fetched(records=True))
        run = running.read_to_evaluate(home.local, overrides or [])
        found = records.newest_step(home, console.print)
        ending.enter_context(running.begun(run, local=local, say=console.print))
        for line in running.changed_inputs(home.local, inputs.of_run(run)):
            if line.startswith("prompts."):
                raise RunError(f"{line}, and it says what is held out; give it back")
            console.print(f"note: {line}", markup=False, highlight=False, soft_wrap=True)
        assessor = quality.assessor(run, home.local, console.print)
        stages = running.stages(run, local=local, say=console.print)
        ending.callback(stages.close)
        step = stages.learner.restore(home, found).step

        def event(kind: str, **details: object) -> None:
            if line := trouble(kind, details):
                console.print(line, markup=False, highlight=False)

        dispatcher = Dispatcher(run, stages, event=event, say=console.print)
        dispatcher.publish(oldest=step)
        prompts, held_out = running.sources(run)
        scored, seen = run_evaluation(run, dispatcher, held_out, step, oldest=step, prompts=prompts)
        found_out = evaluation_summary(run, scored, seen, assessor)
    console.print(f"{run.name}, step {step}, {len(scored)} {run.of_evaluation('prompts')}:")
    _print_estimates(console, found_out["rewards"])
    if seen:
        console.print(f"{len(seen)} training prompts:")
        _print_estimates(console, found_out["train_rewards"])
    if "quality" in found_out:
        console.print(f"quality, of {len(scored) * run.evaluation.images} {run.of_evaluation('pictures')}:")
        for name, value in found_out["quality"].items():
            console.print(f"  {name}: {shown(value, '.4f')}")


def _print_estimates(console: Console, estimates: Mapping[str, Mapping[str, float | None]]) -> None:
    for name, found in estimates.items():
        mean, low, high = (shown(found[key], ".4f") for key in ("mean", "low", "high"))
        interval = "no interval, from so few prompts" if found["low"] is None else f"{low} to {high}"
        console.print(f"  {name}: {mean} ({interval})")


@app.command()
def sample(
    folder: RunPlace,
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    images: Annotated[int, typer.Option(min=1, help="How many pictures.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="The noise they start from.")] = 0,
    base: Annotated[bool, typer.Option("--base", help="The model as it was before training.")] = False,
    strength: Annotated[str, typer.Option(help="Strengths of the run's adapter, such as 0,0.5,1: a row each.")] = "1",
    also: Annotated[
        list[str] | None, typer.Option("--with", help="Another run's adapter, such as runs/other=0,1: a column each.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The PNG file to write.")] = Path("sample.png"),
) -> None:
    """Draw pictures of a prompt with a run's newest checkpoint, side by side in one PNG.

    With strengths, base + sum of strength x (adapter - base) is what is drawn with, a cell a combination.
    """
    from pcpo_ray.commands import drawing
    from pcpo_ray.commands import session as running
    from pcpo_ray.runs import records
    from pcpo_ray.runs.folder import RunFolder
    from pcpo_ray.training import inputs

    console = Console(markup=False, highlight=False, soft_wrap=True)
    composed = bool(also) or strength != "1"
    if composed and base:
        raise ConfigError("got --base, which is the model without adapters, with --strength or --with; give one")
    with contextlib.ExitStack() as ending:

        def fetched(place: str) -> Path:
            home = RunFolder.of(place).fetched(newest=composed or not base, say=console.print)
            return ending.enter_context(home).local

        here = fetched(folder)
        run = records.read(here)
        for line in running.changed_inputs(here, inputs.of_model(run.model)):
            console.print(f"note: {line}", markup=False, highlight=False, soft_wrap=True)
        if composed:
            adapters = [drawing.parse(f"{here}={strength}"), *(drawing.parse(text, fetched) for text in also or [])]
            drawing.grid(adapters, prompt, images=images, seed=seed, out=out, say=console.print)
        else:
            found = None if base else records.newest_checkpoint(here, console.print)
            drawing.plain(run, found, prompt, images=images, seed=seed, out=out)
    console.print(f"{images} pictures of {prompt!r}: {out}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def report(folder: RunPlace) -> None:
    """Write a run's report.html again, from what its folder holds."""
    from pcpo_ray.commands.report.page import write
    from pcpo_ray.runs import records
    from pcpo_ray.runs.folder import RunFolder

    with RunFolder.of(folder).fetched(records=True) as home:
        records.read(home.local)
        page = write(home.local)
        home.put(page)
        place = page if home.url is None else f"{home.place}/{page.name}"
        Console().print(f"report: {place}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def plan(
    config: Annotated[Path, typer.Argument(help="A YAML config, such as configs/shapes_pcpo.yaml.")],
    overrides: Overrides = None,
    gpu: Annotated[str | None, typer.Option(help="What must fit: H200, A100-80, 4090, ...")] = None,
    object_store: Annotated[
        float | None, typer.Option(min=0, help="GiB of all nodes' object stores together (Ray: 30% of their memory).")
    ] = None,
    probe: Annotated[bool, typer.Option("--probe", help="Measure each role's speed, here, on a few images.")] = False,
    recorded: Annotated[
        Path | None, typer.Option("--from", help="Take each role's speed from a run's folder, such as runs/mine.")
    ] = None,
) -> None:
    """What a run will need: memory by role, what fits, the switches that make it fit, how many workers; starts none.

    The model's folder needs its JSON files only, unless --probe is given. Ends with 1 where something does not fit.
    """
    from pcpo_ray.commands import plan
    from pcpo_ray.commands.plan import pace, page
    from pcpo_ray.config import files, paths

    if probe and recorded is not None:
        raise ConfigError("got --probe and --from; give one of them")
    run = paths.absolute(files.load(config, overrides or []))
    console = Console()
    room = plan.Budget(gpu=gpu, store=None if object_store is None else object_store * plan.gpus.GIB)
    planned = plan.plan(run)
    verdicts = plan.judge(planned, room)
    page.show(planned, console)
    page.show_verdicts(verdicts, console, gpu)
    if any(verdict.remedies for verdict in verdicts):
        page.show_together(*plan.together(planned, verdicts, room), console)
    if probe or recorded is not None:
        found = pace.probe(run, console.print) if recorded is None else pace.recorded(recorded, run)
        page.show_pace(planned, found, pace.forecast(run, found), console)
    if not all(verdict.fits for verdict in verdicts):
        raise typer.Exit(1)


@app.command()
def study(
    paths: Annotated[list[Path], typer.Argument(metavar="STUDY...", help="Studies, such as configs/studies/*.yaml.")],
    local: Local = False,
    runs: Annotated[Path, typer.Option(help="A study's folder is RUNS/<name>.")] = Path("runs"),
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time; by default as many as the machine has cores for.")
    ] = None,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Only the table and the page, from the runs that are there.")
    ] = False,
) -> None:
    """Compare arms on the same seeds; the same again keeps the runs that are whole and goes on with the others."""
    from pcpo_ray.commands.study import running

    running.command(paths, runs, local=local, jobs=jobs, report_only=report_only, console=Console())


for command in operate.COMMANDS:
    app.command()(command)
app.add_typer(bench.app, name="bench")


def _version(value: bool) -> None:
    if value:
        typer.echo(f"pcpo-ray {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    if context.invoked_subcommand in {command.__name__ for command in operate.COMMANDS}:
        terminal.heed()  # they show what goes on elsewhere


def main() -> None:
    """The command: an expected error is one message and exit status 1, an end by monitors 3; Ctrl-C is 130."""
    with terminal.buffered_output():
        try:
            app(standalone_mode=True)
        except AlarmError as error:
            print(f"ended by monitors: {error}", file=sys.stderr)
            sys.exit(3)
        except PcpoError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)
        except KeyboardInterrupt:
            sys.exit(130)


if __name__ == "__main__":
    main()
