"""The results of a run, of an evaluation and of a sampling, as values for scripts and notebooks."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from pcpo_ray import config
from pcpo_ray.commands import free_names, sample_sheet
from pcpo_ray.commands.report import reference_curves
from pcpo_ray.commands.report.verdict import Verdict, verdict
from pcpo_ray.commands.sample_options import check_writable
from pcpo_ray.data.records import EvaluationRecord, StepRecord
from pcpo_ray.errors import RunError
from pcpo_ray.models import lora_place
from pcpo_ray.runs import configs, names, records
from pcpo_ray.runs.folder import RunFolder
from pcpo_ray.runs.intervals import Estimate
from pcpo_ray.runs.places import folder_at
from pcpo_ray.training import monitors

if TYPE_CHECKING:
    from PIL.Image import Image

R = TypeVar("R", StepRecord, EvaluationRecord)
Ending = Literal["finished", "stopped", "rolled_back", "failed", "started"]
"""The newest of the events that begin and end a run; "started" is a run that goes on, or that was killed."""


@dataclass(frozen=True, kw_only=True)
class EvaluationImage:
    """An image that an evaluation kept; a notebook shows it."""

    step: int
    prompt: str
    position: int
    """The place of the prompt in the evaluation, from 0."""
    sample: int
    path: Path
    scores: Mapping[str, float]
    described: Mapping[str, str]
    """The texts of rewards that say what they saw, such as what `ocr` read."""

    def open(self) -> Image:
        """Read the image."""
        from PIL import Image

        return Image.open(self.path)

    def _repr_png_(self) -> bytes:
        return self.path.read_bytes()


@dataclass(frozen=True, kw_only=True, eq=False)
class RunResult:
    """A run and all that it left, read when asked for.

    `place` is its path or URL, `folder` its folder on this machine, and `config` its whole config.
    """

    place: str
    folder: Path
    config: config.Run
    home: RunFolder

    @cached_property
    def record(self) -> records.Record:
        """All that the run recorded, as the report reads it."""
        return records.read_record(self.folder)

    @property
    def name(self) -> str:
        """The name of the run."""
        return self.config.name

    @property
    def step(self) -> int:
        """The last training step on record."""
        return self.record.done

    @property
    def ending(self) -> Ending:
        """The way the run ended; "started" where it has not, or where it was killed."""
        kinds = ("finished", "stopped", "rolled_back", "failed", "started")
        found: list[Ending] = [event["kind"] for event in self.record.named(*kinds)]
        return found[-1] if found else "started"

    @property
    def alarm(self) -> str | None:
        """Why the run's monitors ended it, and how to go on; None if they did not."""
        return monitors.ending(self.folder) or None

    @cached_property
    def metrics(self) -> Sequence[StepRecord]:
        """The training steps, oldest first. A number that was missing or not finite is NaN."""
        return tuple(_typed(StepRecord, row, self.place) for row in self.record.steps)

    @cached_property
    def evaluations(self) -> Sequence[EvaluationRecord]:
        """The evaluations, oldest first. A number that was missing or not finite is NaN."""
        return tuple(_typed(EvaluationRecord, row, self.place) for row in self.record.evaluated)

    @cached_property
    def images(self) -> Mapping[int, Sequence[EvaluationImage]]:
        """The images that evaluations kept, by training step: those of the first and of the last."""
        found = {names.step_of(path.name): path for path in (self.folder / "images").glob("step-*")}
        return {step: _images(self.folder, step, path) for step, path in sorted(found.items()) if step is not None}

    @property
    def checkpoint(self) -> Path | None:
        """The folder of the newest whole checkpoint, if there is one."""
        found = self.home.newest(lambda line: None)
        return None if found is None else self.home.fetch_checkpoint(found)

    @property
    def adapter(self) -> Path | None:
        """The folder that diffusers' `load_lora_weights` takes; None for full fine-tuning, or without a checkpoint."""
        folder = self.checkpoint
        return folder if folder is not None and (folder / lora_place.FILES[0]).is_file() else None

    @property
    def verdict(self) -> Verdict:
        """A sentence on whether the reward rose between the first evaluation and the last, with its limits."""
        return verdict(self.record, reference_curves.beside(self.record))

    @property
    def report(self) -> Path | None:
        """The run's page, if it is written."""
        page = self.folder / "report.html"
        return page if page.is_file() else None

    def __repr__(self) -> str:
        return f"RunResult({self.place!r}: {self.ending} after step {self.step} of {self.config.steps})"


def load_run(place: str | Path | RunResult) -> RunResult:
    """Open the run in a folder or at a URL. Raises RunError, listing the runs there are, if there is none.

    A run in object storage is fetched; its copy on this machine lasts as long as the result.
    """
    if isinstance(place, RunResult):
        return place
    ending = contextlib.ExitStack()
    with contextlib.ExitStack() as unless_read:
        unless_read.push(ending)
        home = ending.enter_context(folder_at(str(place)).fetched(records=True, newest=True, say=lambda line: None))
        found = of(home)
        unless_read.pop_all()
    weakref.finalize(found, ending.close)
    return found


def of(home: RunFolder) -> RunResult:
    """Make the result of the run in a folder. Raises RunError if there is none."""
    here = dataclasses.replace(home, local=home.local.absolute())  # the working folder may change
    return RunResult(place=home.place, folder=here.local, config=configs.read(here.local), home=here)


def _typed(kind: type[R], row: Mapping[str, Any], place: str) -> R:
    """Make the record that a line of metrics.jsonl holds. Raises RunError for a line of another version."""
    try:
        return kind(**{name: value for name, value in row.items() if name not in ("kind", "time")})
    except TypeError as error:
        raise RunError(f"{place} was recorded by another version of pcpo_ray: step {row['step']}: {error}") from None


def _images(run: Path, step: int, folder: Path) -> Sequence[EvaluationImage]:
    from pyarrow import parquet

    table = parquet.read_table(run / "evaluations.parquet" / f"{names.name_of(step)}.parquet")
    rows = table.to_pylist()
    given = ("step", "prompt", "position", "sample", "described")
    return tuple(
        EvaluationImage(
            step=step,
            prompt=row["prompt"],
            position=row["position"],
            sample=row["sample"],
            path=folder / f"{row['position']:03d}-{row['sample']:02d}.png",
            described=row.get("described") or {},
            scores={name: math.nan if value is None else value for name, value in row.items() if name not in given},
        )
        for row in rows
    )


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """An evaluation of a run's newest checkpoint: the mean of each reward, with its 95% interval over prompts.

    `images` counts the images of the evaluation's prompts. `train_rewards` are those of training prompts, if the config
    asks for any (`train_prompts` counts them). `quality` holds what evaluation.quality measures.
    """

    config: config.Run = dataclasses.field(repr=False)
    step: int
    prompts: int
    images: int
    rewards: Mapping[str, Estimate]
    train_prompts: int = 0
    train_rewards: Mapping[str, Estimate] = dataclasses.field(default_factory=dict)
    quality: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """Return the evaluation as plain data, with null for NaN; `held_out` tells whether its prompts are."""
        found: dict[str, Any] = {
            "run": self.config.name,
            "step": self.step,
            "held_out": self.config.evaluation.held_out,
            "prompts": self.prompts,
            "images": self.images,
            "rewards": {name: one.row() for name, one in self.rewards.items()},
        }
        if self.train_prompts:
            trained = {name: one.row() for name, one in self.train_rewards.items()}
            found |= {"train_prompts": self.train_prompts, "train_rewards": trained}
        return {**found, "quality": dict(self.quality)} if self.quality else found


@dataclass(frozen=True, kw_only=True, eq=False)
class SampleResult:
    """Images of one prompt; a notebook shows them as one image, with their labels.

    `cells` has a row for the model before training and for a checkpoint, or for each strength of the first adapter;
    then it has a column for each combination of the others' strengths.
    """

    prompt: str
    cells: Sequence[Sequence[np.ndarray]]
    """(N, H, W, 3) uint8 each."""
    rows: Sequence[str]
    """The model of each row, or its strength."""
    columns: Sequence[str] = ()
    """The strengths of the other adapters; empty if none are composed."""
    names: Sequence[str] = ()
    """The labels of the images of a cell."""

    @property
    def images(self) -> list[Image]:
        """All images, cell by cell."""
        from PIL import Image

        return [Image.fromarray(image) for row in self.cells for cell in row for image in cell]

    def save(self, path: str | Path) -> None:
        """Write the images as one PNG: a sheet of rows, or a grid of the strengths.

        Raises RunError, also for a file that is there already.
        """
        out = Path(path)
        check_writable(out)
        free_names.check_free(out)
        out.write_bytes(self._repr_png_())

    def _repr_png_(self) -> bytes:
        if self.columns:
            return sample_sheet.grid(self.cells, self.rows, self.columns, self.prompt)
        rows = [(label, list(row[0])) for label, row in zip(self.rows, self.cells, strict=True)]
        return sample_sheet.sheet(rows, self.prompt, self.names)
