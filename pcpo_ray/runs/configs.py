"""Reading the config of a run from its folder. Nothing heavy is imported here."""

from collections.abc import Sequence
from pathlib import Path

from pcpo_ray import config
from pcpo_ray.config import files, paths
from pcpo_ray.errors import ConfigError, RunError
from pcpo_ray.runs import look


def read(folder: Path, overrides: Sequence[str] = ()) -> config.Run:
    """Read the config of a run, with overrides `a.b.c=value`.

    Raises RunError, listing the runs there are, if there is no such run; ConfigError for a wrong override.
    """
    path = folder / look.CONFIG
    if not path.is_file():
        raise look.no_run(str(folder))
    try:
        run = files.load(path)
    except ConfigError as error:
        raise RunError(f"{path} is not a config of this version: {error}") from None
    return paths.absolute(files.load(path, overrides)) if overrides else run
