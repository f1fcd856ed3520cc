"""pcpo-ray bench: each figure beside a limit that is measured in the same run, in turn with it.

A benchmark is a module of this package with a function `measure(run, repeats, say)` that returns its rows, and
`measured_on(run)`, the run that it measures, where that is another than the config's.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    help="Measure this machine: each figure beside its limit, measured in turn, and their ratio.",
)

BENCHES = {
    # first: this process's peak of memory is one of its figures
    "backends": "Seconds a step on Ray against in this process, one worker a role, and each role's peak memory.",
    "sampler": "Images/s with guidance, log-probs, decode and handing over, against bare forwards and a bare decode.",
    "learner": "(Sample, step) pairs/s of an update, against a bare forward and backward at the best micro-batch.",
    "ranks": "The share of the learner's passes in which a rank idles, 4 ranks on 2 groups, against whole groups each.",
    "trajectory": "Bytes a sample that cross processes, against the predictions of the trained steps.",
    "scoring": "Images/s scored, against the bare forward of the rewards' networks at the best batch.",
    "scheduler": "The driver's microseconds a task, with 10 to 10,000 tasks in flight (no work, no Ray).",
    "weights": "Seconds from publishing until 4 samplers have acknowledged, against one copy a process (on Ray).",
    "store": "MB that 512 samples of FLUX's size make an object store of 8 GB put on disk (simulated work, on Ray).",
    "loop": "Seconds a step with a batch ahead, against the slowest role alone (simulated work, on Ray).",
    "grow": "Seconds a step with 1 to 8 samplers and 64 to 1,024 samples (simulated work, on Ray).",
    "start": "Seconds from the command to the first sample, against importing torch and diffusers and starting Ray.",
}

CONFIG = Path("configs/shapes_pcpo.yaml")

Config = Annotated[Path, typer.Argument(help="A YAML config.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Overrides of the config, each a.b.c=value.")]
Repeats = Annotated[int, typer.Option(min=1, help="How often figure and limit are measured, in turn.")]
Out = Annotated[Path | None, typer.Option(help="The JSON file to write, with every repeat's numbers.")]


@app.callback(invoke_without_command=True)
def bench(
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="A.json B.json", help="Two files' ratios side by side; measures nothing."),
    ] = None,
) -> None:
    if compare is None:
        return
    from pcpo_ray.commands.bench import page, results

    first, second = (results.read(path) for path in compare)
    page.compare(results.compare(first, second), first, second, page.wide())
    raise typer.Exit


@app.command("made-up", help="Write a published model with weights made up, for a config's model.path.")
def _made_up(
    name: Annotated[str, typer.Argument(help="sd15, sd35m or flux; clip-l or clip-h for a reward.")],
    folder: Annotated[Path, typer.Argument(help="Where, in the libraries' format; it is not to be there yet.")],
    dtype: Annotated[str, typer.Option(help="Of the weights: float32, bfloat16 or float16.")] = "float32",
) -> None:
    from pcpo_ray.commands.bench import made_up, page
    from pcpo_ray.data.tensors import device_here

    made_up.write(name, folder, dtype, device_here())
    page.say(page.wide(), f"{name}, made up, in {dtype}: {folder}")


def _command(names: list[str]) -> Callable[..., None]:
    def command(config: Config = CONFIG, overrides: Overrides = None, repeats: Repeats = 5, out: Out = None) -> None:
        from pcpo_ray.commands.bench import page, running

        running.command(names, config, overrides or [], repeats=repeats, out=out, console=page.wide())

    return command


for _name, _help in BENCHES.items():
    app.command(_name, help=_help)(_command([_name]))
app.command("all", help="All of them, one after the other.")(_command(list(BENCHES)))
