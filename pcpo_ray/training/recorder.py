"""The run folder: everything a run leaves behind, readable while it goes on and after it was killed.

config.yaml     resolved                        inputs.json         see inputs.py
metrics.jsonl   a line a step or evaluation     events.jsonl        faults, versions, endings
images/         the first and last evaluation's images, and some of the others'
scores.parquet/ a row a training sample         evaluations.parquet/ a row an evaluated image (a file a step each)
features/       see quality/ (a file a step)
checkpoints/    see runs/checkpoints.py         report.html         see commands/report/
status.json     how the run is, for `pcpo-ray status`: written every few seconds, see runs/look.py
"""

import contextlib
import math
import shutil
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pcpo_ray import config
from pcpo_ray.config import files
from pcpo_ray.data.records import Event
from pcpo_ray.errors import AwayError, CheckpointError, RunError, TakenOverError
from pcpo_ray.metrics.reporter import MetricsReporter, NoReporter
from pcpo_ray.runs import disk, lines, look, writer
from pcpo_ray.runs.disk import writing
from pcpo_ray.runs.folder import CONFIG, INPUTS, RunFolder
from pcpo_ray.runs.names import name_of, step_of
from pcpo_ray.runs.outbox import DATASETS
from pcpo_ray.training import inputs
from pcpo_ray.training.notifier import Notifier
from pcpo_ray.training.trackers import Trackers

TOLD = 5.0
"""Seconds from one status.json to the next."""

RECENT = 50
"""The number of newest events kept for the status. `published` is left out, as every step has one."""


class Recorder:
    """The writer of a run's folder. Raises RunError where it cannot write, TakenOverError where it may not any more.

    When a method returns, its line or file is on the disk.
    """

    def __init__(self, home: RunFolder, run: config.Run) -> None:
        self.home = home
        self.folder = home.local
        self.run = run
        self.meter: MetricsReporter = NoReporter()
        self.recent: deque[Event] = deque(maxlen=RECENT)
        self.repaired: list[str] = []
        """The damage that the last `rewind` found in the records, and what it did about it, in words."""
        self.say: Callable[[str], None] = lambda line: None
        """The function that gets a line where a tracker fails."""
        self.notifier: Notifier | None = None
        self.again = ""
        """The command that continues the run, for its status."""
        self._told = -math.inf
        self._trackers: Trackers | None = None

    @classmethod
    def create(cls, home: RunFolder, run: config.Run, *, began: inputs.Digests | None = None) -> "Recorder":
        """Make a new run's folder; `began` are the digests of the files that it starts from.

        Raises RunError if it exists or cannot be written.
        """
        folder = home.local
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            if not look.is_cut_short(folder):
                raise look.exists(folder) from None
        except OSError as error:
            raise RunError(f"the run folder {folder} cannot be made: {error}") from None
        writer.lock(folder)  # before anything here may delete it: another process may have begun there as well
        try:
            recorder = cls(home.claim(new=True), run)
            disk.sync(folder.parent)
            if began is not None:
                recorder._replace(INPUTS, inputs.dump(began))
            recorder._replace(CONFIG, files.dump(run))  # last: from here on it is a run
            recorder.home.push_records(patience=0.0)
        except TakenOverError:
            raise
        except RunError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return recorder

    @classmethod
    def reopen(cls, home: RunFolder, run: config.Run, step: int) -> "Recorder":
        """Open the recorder of a run that continues after `step`, in a folder that is claimed.

        Records past the step go, as it is about to happen again.
        """
        recorder = cls(home, run)
        recorder._replace(CONFIG, files.dump(run))
        recorder.rewind(step)
        recorder.home.push_records(patience=0.0)
        recorder.home.tidy()
        return recorder

    def rewind(self, step: int) -> None:
        """Drop all records past `step`, which is about to happen again. Damaged lines go too, and a copy keeps them."""
        metrics, events = lines.metrics(self.folder / "metrics.jsonl"), lines.events(self.folder / "events.jsonl")
        self.repaired = []
        for read in (metrics, events):
            if read.damaged:
                copy = read.path.with_name(f"{read.path.name}.damaged-{time.time_ns()}")
                with writing(copy):
                    shutil.copy(read.path, copy)
                self.repaired.append(f"{read}; they are left out from here on, {copy.name} keeps them")
        self.home.rewound(step)
        self._replace("metrics.jsonl", "".join(f"{lines.text(row)}\n" for row in metrics.rows if row["step"] <= step))
        self._replace("events.jsonl", "".join(f"{lines.text(row)}\n" for row in events.rows))
        for message in self.repaired:
            self.event("damaged", message=message)
        for dataset in ("scores.parquet", "evaluations.parquet", "features"):
            for path in (self.folder / dataset).glob("step-*.*"):
                recorded = step_of(path.stem)
                if recorded is not None and recorded > step and path.suffix == DATASETS[dataset]:
                    with writing(path):
                        path.unlink()

    def start_trackers(self) -> None:
        """Open the trackers and the notifier that the config asks for. Raises RunError for one that does not start."""
        self.notifier = Notifier(self.run, self.home.address, self._tell)
        self.notifier.step = max((int(row.get("step", 0)) for row in self.metrics()), default=0)  # of one continued
        if self.run.trackers:
            self._trackers = Trackers(self.run.trackers, self.run.name, self.folder)

    def metrics(self) -> list[dict[str, Any]]:
        """Return all lines of metrics.jsonl; a last line that a kill cut short is left out.

        Raises RunError where one is damaged.
        """
        found = lines.metrics(self.folder / "metrics.jsonl")
        if found.damaged:
            raise RunError(f"{found}; --resume goes on without them, and keeps a copy")
        return found.rows

    def record(self, kind: str, step: int, values: Mapping[str, Any]) -> dict[str, Any]:
        """Add a line to metrics.jsonl, and its numbers to the trackers; return the line."""
        row = {"kind": kind, "step": step, "time": time.time(), **values}
        self._append("metrics.jsonl", row)
        numbers = {f"{kind}/{name}": value for name, value in _flat(values) if math.isfinite(value)}
        if self._trackers is not None:
            self._trackers.log(step, numbers)
            self._tell_of_trackers()
        return row

    def put_back(self, row: Mapping[str, Any]) -> None:
        """Add a line to metrics.jsonl that could not be added when it was made, and that a checkpoint has kept."""
        if not any((known["kind"], known["step"]) == (row["kind"], row["step"]) for known in self.metrics()):
            self._append("metrics.jsonl", row)

    def event(self, kind: str, **details: Any) -> None:
        """Add a line to events.jsonl."""
        event = Event(time=time.time(), kind=kind, details=details)
        if kind != "published":
            self.recent.append(event)
        try:
            self._append("events.jsonl", event.row())
        finally:  # a full disk is one of the things that those who watch should hear of
            self.meter.event(event)
            if self.notifier is not None:
                self.notifier.again = self.again
                self.notifier.event(event)

    def samples(self, dataset: str, step: int, columns: Mapping[str, Sequence[Any]]) -> None:
        """Write one step's rows of scores.parquet or evaluations.parquet, whole or not at all."""
        import pyarrow as pa
        from pyarrow import parquet

        self.home.check_here()
        path = self.folder / dataset / f"{name_of(step)}.parquet"
        with writing(path):
            path.parent.mkdir(exist_ok=True)
        with disk.replacing(path) as made:
            parquet.write_table(pa.table(dict(columns)), made)

    def write_images(self, step: int, groups: Mapping[int, np.ndarray]) -> None:
        """Write an evaluation's images, by the place of their prompt: images/step-000010/<place>-<sample>.png."""
        from PIL import Image

        self.home.check_here()
        folder = self.folder / "images" / name_of(step)
        made = disk.partial_path(folder)
        with writing(folder):
            try:
                made.mkdir(parents=True)
                for position, images in groups.items():
                    for sample, image in enumerate(images):
                        path = made / f"{position:03d}-{sample:02d}.png"
                        Image.fromarray(image).save(path)
                        disk.sync(path)
                disk.swap_in(made, folder)
            finally:
                shutil.rmtree(made, ignore_errors=True)

    def show(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Show an evaluation's images, one a prompt, in the trackers that can."""
        if self._trackers is not None and images:
            self._trackers.show(step, images)
            self._tell_of_trackers()

    def status(self, row: Mapping[str, Any], *, at_once: bool = False) -> None:
        """Keep the run's status in status.json, every few seconds or at once. A failure to write it is no fault."""
        if not at_once and time.monotonic() - self._told < TOLD:
            return
        self._told = time.monotonic()
        with contextlib.suppress(RunError, OSError):
            self.home.check_here()
            made = self.folder / f".{look.STATUS}.new"
            made.write_text(lines.text(look.kept(row, self.again)), encoding="utf-8")
            made.replace(self.folder / look.STATUS)

    def close(self) -> None:
        if self._trackers is not None:
            self._trackers.finish()
            self._tell_of_trackers()
            self._trackers = None
        if self.notifier is not None:
            self.notifier.close()
            self.notifier = None
        self.meter.close()
        self.meter = NoReporter()

    def _tell_of_trackers(self) -> None:
        assert self._trackers is not None
        for message in self._trackers.troubles():
            self._tell(message)

    def _tell(self, message: str) -> None:
        self.say(message)
        self.trouble(message)

    def trouble(self, message: str) -> None:
        """Record trouble beside the run, which costs it nothing."""
        with contextlib.suppress(RunError):  # of a full disk the run hears when it records what it needs
            self.event("trouble", message=message)

    def push(self) -> None:
        """Put the records into storage. Where that is away they wait for the next time, and an event says so."""
        try:
            self.home.push_records(patience=0.0)
        except AwayError as error:
            self.event("unsent", message=str(error))
            self.say(str(error))

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        self.home.check_here()
        disk.append(self.folder / name, lines.text(row))

    def _replace(self, name: str, text: str) -> None:
        self.home.check_here()
        disk.replace(self.folder / name, text)


def check_never_saved(home: RunFolder) -> None:
    """Check that no checkpoint was made before the run starts over. Raises CheckpointError: all records would go."""
    made = [event for event in lines.events(home.local / "events.jsonl").rows if event["kind"] == "checkpoint"]
    if made:
        raise CheckpointError(
            f"{home.place} has made checkpoints, the last after step {made[-1].get('step')}, and none can be read: is "
            "their disk there? The records stay as they are; bring a checkpoint back, then go on with --resume, or "
            "start under another name"
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """Flatten nested mappings into numbers by slashed name; lists (a value a timestep) by their index."""
    found: list[tuple[str, float]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{prefix}{name}/")
        elif isinstance(value, list | tuple):
            found += _flat({f"{n:03d}": item for n, item in enumerate(value)}, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found.append((f"{prefix}{name}", float(value)))
    return found
