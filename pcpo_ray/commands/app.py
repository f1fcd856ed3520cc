"""pcpo-ray train | evaluate | sample | report | plan | study | bench, and the commands of `operate.py`."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pcpo_ray import __version__
from pcpo_ray.commands import bench, operate
from pcpo_ray.errors import AlarmError, ConfigError, PcpoError
from pcpo_ray.process import terminal

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
    from pcpo_ray.commands import train as command

    command.train(
        command.Order(
            config=config,
            overrides=overrides or (),
            local=local,
            resume=resume,
            resume_if_started=resume_if_started,
            runs=runs,
            metrics_port=metrics_port,
        )
    )


@app.command()
def evaluate(folder: RunPlace, overrides: Overrides = None, local: Local = False) -> None:
    """Evaluate a run's newest checkpoint; prints means, 95% intervals and the pictures' quality.

    Overrides, such as evaluation.count=256 or sampling.guidance_scale=3, change how it is evaluated, not the run.
    """
    from pcpo_ray.commands import evaluate as command

    command.evaluate(folder, overrides or (), local=local)


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
    from pcpo_ray.commands import sample as command

    command.sample(folder, prompt, images=images, seed=seed, base=base, strength=strength, also=also or (), out=out)


@app.command()
def report(folder: RunPlace) -> None:
    """Write a run's report.html again, from what its folder holds."""
    from pcpo_ray.commands.report.page import write
    from pcpo_ray.runs import records
    from pcpo_ray.runs.places import folder_at

    with folder_at(folder).fetched(records=True) as home:
        records.read(home.local)
        page = write(home.local)
        Console().print(f"report: {home.put(page)}", markup=False, highlight=False, soft_wrap=True)


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
    """Plan a run without starting it: memory by role, what fits, the switches that make it fit, how many workers.

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
    page.show_fits(verdicts, console, gpu)
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
