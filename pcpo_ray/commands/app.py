"""pcpo-ray train | evaluate | sample | report | plan | study | bench, and the commands of shipped.py and operate.py."""

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pcpo_ray import __version__
from pcpo_ray.commands import bench, check, look, operate, shipped, study, wrapped
from pcpo_ray.commands.verbs import Verbs, readable_help
from pcpo_ray.errors import AlarmError, ConfigError, PcpoError
from pcpo_ray.process import leaving, terminal
from pcpo_ray.runs.look import place_of, there

HELP = ["-h", "--help"]

app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": HELP},
    epilog="Begin with: pcpo-ray train shapes_pcpo --local",
    help="Aligns text-to-image diffusion and flow models with PCPO (arXiv 2509.25774) on Ray.",
)

Overrides = Annotated[list[str] | None, typer.Argument(help="Overrides of the config, each a.b.c=value.")]
ConfigPlace = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="A YAML config, or a recipe's name, such as shapes_pcpo.")
]
RunPlace = Annotated[
    str, typer.Argument(metavar="RUN", callback=there, help="A run's name, folder or URL: demo, s3://bucket/runs/demo.")
]
Local = Annotated[bool, typer.Option("--local", help="Run in this process, without Ray.")]


TRAIN, LOOK, CLUSTER, MEASURE = "Train", "Look", "Cluster", "Measure"
"""The panels of --help."""


def _example(text: str) -> str:
    return f"Example: {text}"


@app.command(rich_help_panel=TRAIN, epilog=_example("pcpo-ray train shapes_pcpo steps=40 --local"))
def train(
    config: ConfigPlace,
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
        typer.Option(
            metavar="PORT", min=0, max=65535, help="With --local: where Prometheus finds metrics; 0 is any port."
        ),
    ] = None,
    log_level: Annotated[
        str, typer.Option(metavar="LEVEL", help="The lowest level of lines to print: debug, info, warning or error.")
    ] = "info",
    log_json: Annotated[
        bool, typer.Option("--log-json", help="Print a JSON object a line, also on a terminal.")
    ] = False,
) -> None:
    """Train a model; the run's folder is RUNS/<name>."""
    from pcpo_ray.commands import begin

    if resume and resume_if_started:
        raise ConfigError("got --resume and --resume-if-started; give one of them")
    begin.command(
        config,
        overrides or (),
        local=local,
        resume="if_started" if resume_if_started else resume,
        runs=runs,
        metrics_port=metrics_port,
        log_level=log_level,
        log_json=log_json,
    )


@app.command(rich_help_panel=LOOK, epilog=_example("pcpo-ray evaluate demo evaluation.count=256 --local"))
def evaluate(
    folder: RunPlace,
    overrides: Overrides = None,
    local: Local = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as one JSON object.")] = False,
) -> None:
    """Evaluate a run's newest checkpoint; prints means, 95% intervals and the images' quality.

    Overrides, such as evaluation.count=256 or sampling.guidance_scale=3, change how it is evaluated, not the run.
    """
    from pcpo_ray.commands import evaluate_options
    from pcpo_ray.commands.waiting import Waiting
    from pcpo_ray.runs.lines import text

    evaluate_options.check(folder, overrides or ())
    with Waiting("loading torch and diffusers", quiet=as_json) as waiting:
        from pcpo_ray.commands import evaluate as command

        say = partial(print, file=sys.stderr) if as_json else waiting.say
        found = command.evaluate(folder, overrides or (), local=local, say=say, waiting=waiting)
    if as_json:
        print(text(found.row()))
    else:
        print("\n".join(command.lines(found)))


@app.command(rich_help_panel=LOOK, epilog=_example("pcpo-ray sample demo 'a red ring' --compare"))
def sample(
    folder: RunPlace,
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    images: Annotated[int, typer.Option(min=1, help="How many images.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="The seed of the noise that images start from.")] = 0,
    base: Annotated[bool, typer.Option("--base", help="The model as it was before training.")] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="A row before training and a row after it, from the same noise.")
    ] = False,
    strength: Annotated[str, typer.Option(help="Strengths of the run's adapter, such as 0,0.5,1: a row each.")] = "1",
    also: Annotated[
        list[str] | None, typer.Option("--with", help="Another run's adapter, such as runs/other=0,1: a column each.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The PNG file to write; by default sample.png, or sample-2.png and so on.")
    ] = None,
) -> None:
    """Draw images of a prompt with a run's newest checkpoint, side by side in one PNG.

    With strengths, base + sum of strength x (adapter - base) is what is drawn with, a cell a combination.
    """
    from pcpo_ray.commands import free_names, sample_options
    from pcpo_ray.commands.waiting import Waiting
    from pcpo_ray.runs.lines import counted

    if out is not None:
        sample_options.check_writable(out)
        free_names.check_free(out)
    sample_options.check(base=base, compare=compare, strength=strength, also=also or ())
    with Waiting("loading torch and diffusers") as waiting:
        from pcpo_ray.commands.sample import sample as sampled

        found = sampled(
            folder,
            prompt,
            images=images,
            seed=seed,
            base=base,
            compare=compare,
            strength=strength,
            also=also or (),
            say=waiting.say,
            waiting=waiting,
        )
        waiting("writing the file")
        written = out or free_names.free(Path("sample.png"))
        found.save(written)
    wrapped.say(Console(), f"{counted(images, 'image')} of {prompt!r}: {written}")


@app.command(rich_help_panel=LOOK, epilog=_example("pcpo-ray report demo --watch"))
def report(
    folder: RunPlace,
    watch: Annotated[
        bool, typer.Option("--watch", help="Write it again and again while the run goes on, for an open browser.")
    ] = False,
) -> None:
    """Write a run's report.html from what its folder holds."""
    from pcpo_ray.commands.report import watching

    watching.report(folder, watch=watch, say=partial(wrapped.say, Console()))


PANELS = {"recipes": TRAIN, "init": TRAIN, "list": LOOK, "status": LOOK, "chaos": MEASURE}
for name, (command, example) in (shipped.COMMANDS | operate.COMMANDS).items():
    app.command(
        name=name,
        rich_help_panel=PANELS.get(name, CLUSTER),
        epilog=look.EPILOG if name == "status" else _example(example),
    )(command)


@app.command(
    rich_help_panel=MEASURE,
    epilog=_example("pcpo-ray plan sd15_pcpo_aesthetic_reweight --gpu 4090"),
)
def plan(
    config: ConfigPlace,
    overrides: Overrides = None,
    gpu: Annotated[str | None, typer.Option(help="What must fit: H200, A100-80, 4090, ...")] = None,
    local: Annotated[
        bool, typer.Option("--local", help="All roles in one process, as train --local has them.")
    ] = False,
    object_store: Annotated[
        float | None, typer.Option(min=0, help="GiB of all nodes' object stores together (Ray: 30% of their memory).")
    ] = None,
    probe: Annotated[bool, typer.Option("--probe", help="Measure each role's speed, here, on a few images.")] = False,
    recorded: Annotated[
        str | None, typer.Option("--from", help="Take each role's speed from a run, such as mine or runs/mine.")
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="Processes that sample or learn, a GPU each, to lay out; the config's own number."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as one JSON object.")] = False,
) -> None:
    """Plan a run without starting it: memory by role, what fits, the switches that make it fit, how many workers.

    With --probe or --from also who is to sample and who to learn: the seconds a step of each layout.
    The model's folder needs no weights, unless --probe is given; the models of recipes need no folder at all. Ends with
    1 where something does not fit.
    """
    import contextlib

    from pcpo_ray.commands.waiting import Waiting
    from pcpo_ray.config import files, paths

    if probe and recorded is not None:
        raise ConfigError("got --probe and --from; give one of them")
    if local and (probe or recorded is not None or object_store is not None):
        raise ConfigError(
            "got --local, which plans the memory of one process; leave out --probe, --from and --object-store, which "
            "are about processes of their own"
        )
    if recorded is not None:
        there(recorded)
    run = paths.absolute(files.load(config, overrides or []))
    with contextlib.ExitStack() as ending:
        waiting = ending.enter_context(Waiting("loading torch and diffusers", quiet=as_json, lines=False))
        from pcpo_ray.commands import plan
        from pcpo_ray.commands.plan import data, layouts, pace, page, stand_ins

        if local:
            run = plan.in_one_process(run, gpu=gpu)
        room = plan.Budget(
            gpu=plan.gpus.known(gpu), store=None if object_store is None else object_store * plan.gpus.GIB
        )
        waiting("reading the model's sizes")
        sized = stand_ins.Sized(run=run) if probe else ending.enter_context(stand_ins.sized(run))
        waiting("counting the memory of each role")
        planned = sized.named(plan.plan(sized.run, local=local))
        waiting("looking for what makes it fit")
        verdicts = plan.judge(planned, room)
        together = plan.together(planned, verdicts, room) if any(verdict.remedies for verdict in verdicts) else None
        found = forecast = None
        laid_out: list[layouts.Layout] = []
        if probe or recorded is not None:
            waiting("measuring the speed of each role")
            say = partial(print, file=sys.stderr) if as_json else waiting.say
            found = pace.probe(run, say) if recorded is None else pace.recorded(Path(place_of(recorded)), run)
            forecast = pace.forecast(run, found)
            laid_out = layouts.layouts(sized.run, found, processes, gpu)
        elif processes is not None:
            raise ConfigError(f"--processes {processes} needs speeds: give --probe, or --from and a run's folder")
    console = Console()
    if not as_json:
        for note in sized.notes:
            wrapped.say(console, note)
        page.show(planned, console)
        page.show_fits(verdicts, console, gpu)
        if together is not None:
            page.show_together(*together, console)
        if gpu is not None and not local:
            wrapped.say(
                console, f"each role on a {gpu} of its own; all on one, in one process: add --local, here and to train"
            )
    if as_json:
        print(data.text(planned, verdicts, together, found, forecast, laid_out, sized.notes))
    elif found is not None and forecast is not None:
        page.show_pace(planned, found, forecast, console)
        page.show_layouts(laid_out, console, gpu)
    if not all(verdict.fits for verdict in verdicts):
        raise typer.Exit(1)


app.command("check", rich_help_panel=TRAIN, epilog=_example("pcpo-ray check shapes_pcpo"))(check.check)


app.command("study", rich_help_panel=MEASURE, epilog=_example("pcpo-ray study studies/diffusion --local"))(study.study)


@app.command("config", rich_help_panel=TRAIN, epilog=_example("pcpo-ray config optimizer.schedule"))
def config_keys(
    key: Annotated[
        str | None, typer.Argument(metavar="KEY", help="A key, such as optimizer or sampling.process.")
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema, for editors.")] = False,
) -> None:
    """Show the keys of a config: type, default, unit and meaning. docs/config.md has all of them."""
    from pcpo_ray.commands.reference import schema as schemas
    from pcpo_ray.commands.reference import terminal as reference

    if schema:
        typer.echo(schemas.text(), nl=False)
    else:
        reference.show(key, Console())


app.add_typer(bench.app, name="bench", rich_help_panel=MEASURE)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"pcpo-ray {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    if context.invoked_subcommand in {*shipped.COMMANDS, *operate.COMMANDS}:
        terminal.heed()  # they show what goes on elsewhere


def main() -> None:
    """The command: an expected error is one message and exit status 1, an end by monitors 3; Ctrl-C is 130."""
    with leaving.ended(), terminal.buffered_output():
        try:
            command = typer.main.get_command(app)
            readable_help(command, HELP)
            command(standalone_mode=True)
        except AlarmError as error:
            wrapped.say(Console(stderr=True), f"ended by monitors: {error}")
            sys.exit(3)
        except PcpoError as error:
            wrapped.say(Console(stderr=True), f"error: {error}")
            sys.exit(1)
        except KeyboardInterrupt:
            sys.exit(130)
        finally:
            leaving.deaf()


if __name__ == "__main__":
    main()
