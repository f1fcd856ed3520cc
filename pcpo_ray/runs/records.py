"""Reading a run's folder: its newest checkpoint, evaluations and recorded lines."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pcpo_ray import config
from pcpo_ray.config import TOTAL
from pcpo_ray.errors import RunError
from pcpo_ray.runs import configs, intervals, lines
from pcpo_ray.runs.folder import LocalFolder, RunFolder
from pcpo_ray.runs.intervals import Estimate


def newest_step(home: RunFolder, say: Callable[[str], None]) -> int:
    """Return the step of the newest complete checkpoint. Raises RunError if there is none."""
    found = home.newest(say)
    if found is None:
        raise RunError(f"{home.place} has no whole checkpoint; train it first, or further (checkpoints.every)")
    return found


def newest_checkpoint(folder: Path, say: Callable[[str], None]) -> Path:
    """Return the path of the newest complete checkpoint. Raises RunError if there is none."""
    home = LocalFolder(local=folder)
    return home.checkpoint(newest_step(home, say))


def evaluations(folder: Path, step: int) -> dict[str, np.ndarray]:
    """Read a stored evaluation: the scores of each reward, (P, N) in the order of prompts and samples."""
    from pyarrow import parquet

    path = folder / "evaluations.parquet" / f"step-{step:06d}.parquet"
    if not path.is_file():
        raise RunError(f"{folder} has no evaluation of step {step}")
    table = parquet.read_table(path)
    count = 1 + max(table["position"].to_pylist(), default=-1)
    others = ("step", "prompt", "position", "sample", "described")
    return {
        name: table[name].to_numpy().astype(np.float64).reshape(count, -1)
        for name in table.column_names
        if name not in others
    }


@dataclass(frozen=True)
class Record:
    """All that a run recorded; `steps` and `evaluated` are the lines of metrics.jsonl."""

    folder: Path
    run: config.Run
    steps: Sequence[dict[str, Any]]
    evaluated: Sequence[dict[str, Any]]
    events: Sequence[dict[str, Any]]
    damaged: Sequence[str]
    """Messages about lines that could not be read."""

    @cached_property
    def scores(self) -> dict[int, dict[str, np.ndarray]]:
        """The scores by evaluated step and reward, (P, N) each."""
        return {row["step"]: evaluations(self.folder, row["step"]) for row in self.evaluated}

    @property
    def prompts(self) -> int:
        """Number of evaluated prompts: evaluation.count, or all prompts if they are fewer."""
        return next((len(found[TOTAL]) for found in self.scores.values()), self.run.evaluation.count)

    @property
    def done(self) -> int:
        """The last recorded training step."""
        return int(self.steps[-1]["step"]) if self.steps else 0

    @property
    def sole(self) -> bool:
        """True if the trained total is the value of a single reward."""
        return len(self.run.rewards) == 1 and self.run.rewards[0].weight == 1

    def levels(self, name: str) -> dict[int, Estimate]:
        """Return a reward's mean by evaluated step."""
        return {row["step"]: Estimate.of(row["rewards"][name]) for row in self.evaluated}

    def changes(self, name: str) -> dict[int, Estimate]:
        """Return a reward's change since the first evaluation, at the same prompts and seeds, by evaluated step."""
        first = min(self.scores)
        return {step: intervals.paired(self.scores[first][name], now[name]) for step, now in self.scores.items()}

    def named(self, *kinds: str) -> list[dict[str, Any]]:
        """Return the events of these kinds, oldest first."""
        return [event for event in self.events if event["kind"] in kinds]


def read_record(folder: Path) -> Record:
    """Read all that a run recorded. Raises RunError if there is no run."""
    run = configs.read(folder)
    metrics, events = lines.metrics(folder / "metrics.jsonl"), lines.events(folder / "events.jsonl")
    return Record(
        folder=folder,
        run=run,
        steps=[row for row in metrics.rows if row["kind"] == "train"],
        evaluated=[row for row in metrics.rows if row["kind"] == "evaluation"],
        events=events.rows,
        damaged=[str(read) for read in (metrics, events) if read.damaged],
    )
