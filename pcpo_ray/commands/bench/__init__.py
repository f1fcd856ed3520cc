"""pcpo-ray bench: each figure beside a limit that is measured alternately with it in the same run.

A benchmark is a module of this package with a function `measure(run, repeats, say)` that returns its rows, and
`measured_on(run)` if it changes the config's run.
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
    # first: this process's peak memory is one of its figures
    "backends": "Seconds per step on Ray and in this process, one worker per role, and each role's peak memory.",
    "layout": "Seconds per step split, colocated and hybrid on this machine's cores (on Ray), against one process.",
    "sampler": "Images/s with guidance, log-probs, decoding and packing, against bare forward passes and decoding.",
    "learner": "(Sample, step) pairs/s of an update, against a bare forward and backward at the best micro-batch.",
    "ranks": "The fraction of idle learner passes, 4 ranks on 2 groups, against distributing whole groups.",
    "trajectory": "Bytes per sample that cross processes, against the predictions of the trained steps.",
    "scoring": "Images/s scored, against bare forward passes of the rewards' networks at the best batch.",
    "serving": "Images/s of a served reward with up to 8 callers' requests a call, against one request a call.",
    "scheduler": "The driver's microseconds per task, with 10 to 10,000 tasks in flight (no work, no Ray).",
    "crowd": "The driver's part of a core with 1,000 samplers that hold 2,000 tasks (simulated work, on Ray).",
    "weights": "Seconds from publishing to 4 samplers' acknowledgements, against one copy per process (on Ray).",
    "store": "MB that an object store of 8 GB spills for 512 FLUX-sized samples (simulated work, on Ray).",
    "loop": "Seconds per step with one batch ahead, against the slowest role alone (simulated work, on Ray).",
    "grow": "Seconds per step with 1 to 8 samplers and 64 to 1,024 samples (simulated work, on Ray).",
    "start": "Seconds from the command to the first sample, against importing torch and diffusers and starting Ray.",
}

CONFIG = Path("shapes_pcpo")

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML config, or a recipe's name.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Overrides of the config, each a.b.c=value.")]
Repeats = Annotated[int, typer.Option(min=1, help="How often figure and limit are measured, alternately.")]
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


@app.command(
    "made-up",
    help="Write a published model with random weights, for a config's model.path.",
    epilog="Example: pcpo-ray bench made-up sd15 models/random-sd15",
)
def _random_weights(
    name: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="As sd15, flux or z-image; clip-l or clip-h for a reward. A wrong name lists all."
        ),
    ],
    folder: Annotated[Path, typer.Argument(help="A new folder, in the libraries' format.")],
    dtype: Annotated[str, typer.Option(help="The weights' dtype: float32, bfloat16 or float16.")] = "float32",
) -> None:
    from pcpo_ray.commands.bench import page, random_weights
    from pcpo_ray.data.tensors import device_here

    random_weights.write(name, folder, dtype, device_here())
    page.say(page.wide(), f"{name}, random weights, in {dtype}: {folder}")


def _command(names: list[str]) -> Callable[..., None]:
    def command(config: Config = CONFIG, overrides: Overrides = None, repeats: Repeats = 5, out: Out = None) -> None:
        from pcpo_ray.commands.bench import page, running

        running.command(names, config, overrides or [], repeats=repeats, out=out, console=page.wide())

    return command


for _name, _help in BENCHES.items():
    app.command(_name, help=_help, epilog=f"Example: pcpo-ray bench {_name} --repeats 5")(_command([_name]))
app.command("all", help="All of them, one after the other.", epilog="Example: pcpo-ray bench all --out bench.json")(
    _command(list(BENCHES))
)
