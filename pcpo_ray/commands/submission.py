"""Checks of `pcpo-ray submit` before a job is made: as much of what `train` checks as this machine can see."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pcpo_ray import config
from pcpo_ray.commands import resuming, session
from pcpo_ray.config import paths
from pcpo_ray.errors import PcpoError


def check(run: config.Run, runs: str) -> list[str]:
    """Check a run before it is uploaded; returns a line for each part that only the cluster can check.

    These are parts that need an absolute path which is not on this machine, and the webhook's URL. Raises a PcpoError
    that says what is wrong.
    """
    resuming.check_config(run, runs, otherwise="submit under another name=...")
    absent = [path for path in _absolute(dataclasses.asdict(run)) if not Path(path).expanduser().exists()]
    lines = []
    if run.notify is not None:
        lines.append(
            f"not checked here: {run.notify.url_env}, which must hold the webhook's URL on the cluster's nodes"
        )
    here = dataclasses.replace(paths.absolute(run), notify=None)
    for part in (*session.file_checks(here), lambda: session.check_steps(here)):
        try:
            part()
        except PcpoError as error:
            path = next((path for path in absent if path in str(error)), None)
            if path is None:
                raise
            lines.append(f"not checked here, as {path} is not on this machine: it must be on all of the cluster's")
    return list(dict.fromkeys(lines))


def _absolute(value: Any) -> Iterator[str]:
    """Yield the absolute paths in a config."""
    if isinstance(value, dict):
        for item in value.values():
            yield from _absolute(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _absolute(item)
    elif isinstance(value, str) and value.startswith(("/", "~")):
        yield value
