"""What a run's folder holds, read again: its config, its newest checkpoint, its evaluations."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pcpo_ray import config
from pcpo_ray.config import files, paths
from pcpo_ray.errors import ConfigError, RunError
from pcpo_ray.runs.folder import LocalFolder, RunFolder


def read(folder: Path, overrides: Sequence[str] = ()) -> config.Run:
    """The config of a run, with overrides `a.b.c=value`.

    Raises RunError, naming those that are there, if there is no such run; ConfigError for a wrong override.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        there = sorted(p.parent.name for p in folder.parent.glob("*/config.yaml"))
        raise RunError(f"there is no run at {folder}; in {folder.parent} there are {there or 'none'}")
    try:
        run = files.load(path)
    except ConfigError as error:
        raise RunError(f"{path} is not a config of this version: {error}") from None
    return paths.absolute(files.load(path, overrides)) if overrides else run


def newest_step(home: RunFolder, say: Callable[[str], None]) -> int:
    """The step of the newest checkpoint that is whole. Raises RunError if there is none."""
    found = home.newest(say)
    if found is None:
        raise RunError(f"{home.place} has no whole checkpoint; train it first, or further (checkpoints.every)")
    return found


def newest_checkpoint(folder: Path, say: Callable[[str], None]) -> Path:
    """The newest checkpoint that is whole. Raises RunError if there is none."""
    home = LocalFolder(local=folder)
    return home.checkpoint(newest_step(home, say))


def evaluations(folder: Path, step: int) -> dict[str, np.ndarray]:
    """A stored evaluation: each reward's scores, (P, N) in the order of prompts and samples."""
    from pyarrow import parquet

    path = folder / "evaluations.parquet" / f"step-{step:06d}.parquet"
    if not path.is_file():
        raise RunError(f"{folder} has no evaluation of step {step}")
    table = parquet.read_table(path)
    count = 1 + max(table["position"].to_pylist(), default=-1)
    others = ("step", "prompt", "position", "sample")
    return {
        name: table[name].to_numpy().astype(np.float64).reshape(count, -1)
        for name in table.column_names
        if name not in others
    }
