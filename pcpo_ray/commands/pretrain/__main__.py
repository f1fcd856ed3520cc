"""python -m pcpo_ray.commands.pretrain WORLD [all | vae | clip | sd | flux | measure | ship]: a world's models."""

from pathlib import Path
from typing import Annotated, Literal

import torch
import typer

from pcpo_ray.commands.pretrain import clip, flux, sd, shapes_world, vae, words_world
from pcpo_ray.commands.pretrain.measure import measure
from pcpo_ray.commands.pretrain.ship import ship

WORLDS = {"shapes": shapes_world.WORLD, "words": words_world.WORLD}
PARTS = {"vae": vae.train, "clip": clip.train, "sd": sd.train, "flux": flux.train}


def main(
    name: Annotated[Literal["shapes", "words"], typer.Argument(metavar="WORLD", help="shapes or words.")],
    part: Annotated[Literal["all", "vae", "clip", "sd", "flux", "measure", "ship"], typer.Argument()] = "all",
    out: Annotated[
        Path | None, typer.Option(help="Folder for the checkpoints, WORLD if left out; sd and flux need its vae.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of each; the shipped models' own if left out.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Train one part, or all in turn; `measure` says how good they are, `ship` copies them into the package.

    The same seed and number of threads give the same weights.
    """
    world = WORLDS[name]
    folder = out or Path(name)
    if part == "ship":
        return ship(world, folder, world.checkpoints)
    torch.set_num_threads(threads)
    if part == "measure":
        return measure(world, folder)
    if part != "all" and part not in world.steps:
        raise typer.BadParameter(f"{name} has no {part}; expected one of {', '.join(world.steps)}")
    for one in world.steps if part == "all" else [part]:
        PARTS[one](world, folder, seed, steps or world.steps[one])


typer.run(main)
