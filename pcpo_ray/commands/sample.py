"""`pcpo-ray sample`: sample images of a prompt with a run's newest checkpoint, or with composed adapters."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

from pcpo_ray import models
from pcpo_ray.commands import opening, sample_grid, sample_options
from pcpo_ray.commands.results import SampleResult
from pcpo_ray.data import worlds
from pcpo_ray.runs import configs, records
from pcpo_ray.runs.places import folder_at
from pcpo_ray.training import inputs


def sample(
    place: str,
    prompt: str,
    *,
    images: int,
    seed: int,
    base: bool,
    compare: bool,
    strength: str,
    also: Sequence[str],
    say: Callable[[str], None],
    waiting: Callable[[str, int, int], None],
) -> SampleResult:
    """Sample images of a prompt; `compare` before and after training, `strength` and `also` with composed adapters.

    `waiting` is told of each phase, and how much of it is done of how much. Raises a PcpoError.
    """
    composed = sample_options.check(base=base, compare=compare, strength=strength, also=also)
    with contextlib.ExitStack() as ending:

        def fetched(place: str) -> Path:
            waiting(f"opening {place}", 0, 0)
            home = folder_at(place).fetched(newest=composed or not base, say=say)
            return ending.enter_context(home).local

        here = fetched(place)
        run = configs.read(here)
        for line in opening.changed_inputs(here, inputs.of_model(run.model)):
            say(f"note: {line}")
        world = worlds.of_folder(models.folder_of(run.model))
        unknown = [] if world is None else worlds.unknown_words(world, prompt)
        if world is not None and unknown:
            say(
                f"note: not of the {world} world's words: {', '.join(unknown)}; its models know captions such as "
                f"{worlds.EXAMPLES[world]!r} only"
            )
        if composed:
            own = sample_options.Strengths(folder=here, values=sample_options.values(strength))
            adapters = [own, *(sample_options.parse(text, fetched) for text in also)]
            return sample_grid.grid(adapters, prompt, images=images, seed=seed, say=say, waiting=waiting)
        before = [None] if base or compare else []
        after = [] if base else [records.newest_checkpoint(here, say)]
        return sample_grid.plain(run, [*before, *after], prompt, images=images, seed=seed, waiting=waiting)
