"""`pcpo-ray sample`: sample images of a prompt with a run's newest checkpoint, or with composed adapters."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from pcpo_ray.commands import opening, sample_grid
from pcpo_ray.errors import ConfigError
from pcpo_ray.runs import records
from pcpo_ray.runs.places import folder_at
from pcpo_ray.training import inputs


def sample(
    place: str, prompt: str, *, images: int, seed: int, base: bool, strength: str, also: Sequence[str], out: Path
) -> None:
    """Write images of a prompt to a PNG file; `strength` and `also` compose adapters. Raises a PcpoError."""
    console = Console(markup=False, highlight=False, soft_wrap=True)
    composed = bool(also) or strength != "1"
    if composed and base:
        raise ConfigError("got --base, which is the model without adapters, with --strength or --with; give one")
    with contextlib.ExitStack() as ending:

        def fetched(place: str) -> Path:
            home = folder_at(place).fetched(newest=composed or not base, say=console.print)
            return ending.enter_context(home).local

        here = fetched(place)
        run = records.read(here)
        for line in opening.changed_inputs(here, inputs.of_model(run.model)):
            console.print(f"note: {line}", markup=False, highlight=False, soft_wrap=True)
        if composed:
            adapters = [sample_grid.parse(f"{here}={strength}"), *(sample_grid.parse(text, fetched) for text in also)]
            sample_grid.grid(adapters, prompt, images=images, seed=seed, out=out, say=console.print)
        else:
            checkpoint = None if base else records.newest_checkpoint(here, console.print)
            sample_grid.plain(run, checkpoint, prompt, images=images, seed=seed, out=out)
    console.print(f"{images} pictures of {prompt!r}: {out}", markup=False, highlight=False, soft_wrap=True)
