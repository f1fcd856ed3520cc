"""What a relative path in a config means: a place in the folder where the command is given, in every process.

It is made absolute once, before anything is checked or sent to a worker, which may run in another folder. In a job of
Ray's it stays relative: each machine has a copy of the submitted folder, where its processes run.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any, TypeVar

from pcpo_ray import config

T = TypeVar("T")

JOB = "working_dir_files"
"""The folder of Ray's in which a job's copy of the submitted folder lies."""

PATHS: dict[type, tuple[str, ...]] = {
    config.Model: ("single_file", "text_cache"),
    config.Lora: ("start",),
    config.PromptFile: ("path",),
    config.ClipScore: ("weights",),
    config.Diversity: ("weights",),
    config.Aesthetic: ("head", "weights"),
    config.PickScore: ("model", "processor"),
    config.Hps: ("weights",),
    config.ClipFeatures: ("weights",),
    config.InceptionFeatures: ("weights",),
    config.DinoFeatures: ("model",),
    config.ImagesReference: ("path",),
    config.Quality: ("cache",),
    config.Lpips: ("weights",),
}
"""The keys of each config class that are paths."""

NAMES_OR_PATHS: dict[type, tuple[str, ...]] = {
    config.Model: ("path",),
    config.ClipScore: ("model",),
    config.Diversity: ("model",),
    config.Aesthetic: ("model",),
    config.ClipFeatures: ("model",),
}
"""Those that are the name of a model, unless they have a slash or there is a folder called so."""


def absolute(value: T) -> T:
    """A config, or a part of one, whose paths are absolute, ~ being the user's home."""
    if JOB in Path.cwd().parts:
        return value
    found: T = _absolute(value)
    return found


def place(text: str) -> str:
    """A path that is absolute."""
    return os.path.abspath(os.path.expanduser(text))


def _absolute(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_absolute(one) for one in value)
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    kind = type(value)
    changed = {}
    for field in dataclasses.fields(value):
        old = getattr(value, field.name)
        new = _absolute(old)
        if isinstance(old, str) and field.name in PATHS.get(kind, ()):
            new = place(old)
        elif isinstance(old, str) and field.name in NAMES_OR_PATHS.get(kind, ()):
            new = place(old) if "/" in old or os.path.exists(old) else old
        if new is not old and new != old:
            changed[field.name] = new
    return dataclasses.replace(value, **changed) if changed else value
