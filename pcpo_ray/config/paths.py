"""Relative paths in a config: they mean a place in the folder where the command is given, in every process.

A path is made absolute once, before anything is checked or sent to a worker, which may run in another folder. In a job
of Ray it stays relative: each machine has a copy of the submitted folder, in which its processes run.
"""

import dataclasses
import os
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from pcpo_ray.config.base import PathMark, path_marks

T = TypeVar("T")

JOB = "working_dir_files"
"""The folder of Ray in which a job's copy of the submitted folder lies."""


def absolute(value: T) -> T:
    """Make the paths of a config, or of a part of one, absolute; ~ is the user's home."""
    if JOB in Path.cwd().parts:
        return value
    found: T = _absolute(value)
    return found


def place(text: str) -> str:
    """Make one path absolute."""
    return os.path.abspath(os.path.expanduser(text))


@lru_cache
def _marks(cls: type) -> dict[str, PathMark]:
    return path_marks(cls)


def _absolute(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_absolute(one) for one in value)
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    marks = _marks(type(value))
    changed = {}
    for field in dataclasses.fields(value):
        old = getattr(value, field.name)
        new = _absolute(old)
        mark = marks.get(field.name)
        if mark is not None and isinstance(old, str):
            new = old if mark.is_name(old) else place(old)
        if new is not old and new != old:
            changed[field.name] = new
    return dataclasses.replace(value, **changed) if changed else value
