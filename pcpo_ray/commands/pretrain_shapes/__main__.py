"""python -m pcpo_ray.commands.pretrain_shapes [all | vae | clip | sd | flux | measure | ship]: the shapes models."""

from pathlib import Path
from typing import Annotated, Literal

import torch
import typer

from pcpo_ray.commands.pretrain_shapes import clip, flux, sd, vae
from pcpo_ray.commands.pretrain_shapes.measure import measure
from pcpo_ray.commands.pretrain_shapes.ship import ship

PARTS = {"vae": vae.train, "clip": clip.train, "sd": sd.train, "flux": flux.train}


def main(
    part: Annotated[Literal["all", "vae", "clip", "sd", "flux", "measure", "ship"], typer.Argument()] = "all",
    out: Annotated[Path, typer.Option(help="Folder for the checkpoints; sd and flux need its vae.")] = Path("shapes"),
    seed: Annotated[int, typer.Option(min=0)] = 0,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of each; the shipped models' own if left out.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Train one part, or all in turn; `measure` says how good they are, `ship` copies them into the package.

    The same seed and number of threads give the same weights.
    """
    if part == "ship":
        return ship(out)
    torch.set_num_threads(threads)
    if part == "measure":
        return measure(out)
    for name in PARTS if part == "all" else [part]:
        PARTS[name](out, seed, **({} if steps is None else {"steps": steps}))


typer.run(main)
