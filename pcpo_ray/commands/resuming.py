"""Rules of a run that is continued: the keys it may change, checked before torch is loaded."""

import dataclasses
from pathlib import Path

from pcpo_ray import config
from pcpo_ray.config import files
from pcpo_ray.errors import ConfigError, RunError
from pcpo_ray.runs import look
from pcpo_ray.runs.urls import is_url

FREE_TO_CHANGE = ("steps", "workers", "trackers", "checkpoints", "monitors", "notify")
"""Keys that a resumed run may change: none of them affects the steps it has already made (`free_to_change`)."""

SHOWN = 5
"""Differences that one message names."""

PLACES = ("model.text_cache", "evaluation.quality.cache")
"""Keys that say where something is kept, not what it is."""


def free_to_change(run: config.Run) -> tuple[str, ...]:
    """List the keys that a resumed run may change; `steps` is none where the learning rate's schedule ends with it."""
    ends = run.optimizer.schedule not in config.ENDLESS
    return tuple(key for key in FREE_TO_CHANGE if not (ends and key == "steps"))


def check_config(run: config.Run, runs: str, *, otherwise: str) -> None:
    """Refuse a run that would continue another one of its name, where its folder can be seen from here.

    Paths are not compared: a file that moved is no change. `otherwise` says what to do instead. Raises RunError.
    """
    folder = Path(runs).expanduser() / run.name
    if is_url(runs) or not look.is_run(folder):
        return
    try:
        began = files.load(folder / look.CONFIG)
    except ConfigError as error:
        raise RunError(f"{folder / look.CONFIG} is not a config of this version: {error}") from None
    free = tuple(f"{key}." for key in (*free_to_change(run), *PLACES))
    found = files.differing(dataclasses.asdict(began), dataclasses.asdict(run))
    changed = [f"{key} {text}" for key, text in found.items() if not f"{key}.".startswith(free) and "/" not in text]
    if changed:
        raise RunError(
            f"{folder} was started with another config: {'; '.join(changed[:SHOWN])}; put it back as it was, or "
            f"{otherwise}. Continue the run itself with: {look.continuing(folder)}"
        )
