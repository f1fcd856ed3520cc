"""Trackers (tensorboard, wandb, mlflow, ...): they show a run's numbers and images elsewhere too, through Accelerate.

Each has a thread of its own, in which it starts, logs and finishes. A tracker that fails, hangs or falls behind costs
the run nothing but those numbers, and the user is told.
"""

import importlib
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from pcpo_ray.errors import RunError

START, FINISH = 120.0, 60.0
"""Seconds within which a tracker must have started, and finished."""

WAITING = 1000
"""The number of rows that may wait for a tracker."""


class Tracker:
    """One tracker. Raises RunError where it does not start."""

    def __init__(self, name: str, run: str, folder: Path) -> None:
        self.name = name
        self.lost = 0
        self.troubles: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.work: queue.SimpleQueue[Callable[[Any], None] | None] = queue.SimpleQueue()
        started: Future[None] = Future()
        self.thread = threading.Thread(
            target=self._work, args=(_class_of(name, folder), run, folder, started), name=name, daemon=True
        )
        self.thread.start()
        try:
            started.result(START)
        except BaseException as error:  # each has errors of its own: no login, no server, half an installation
            if isinstance(error, KeyboardInterrupt):
                raise
            cause = _told(error) if started.done() else f"no answer in {START:g} s"
            raise RunError(
                f"tracker {name!r} does not start: {cause}; set it up as its own documentation says, or leave it out "
                "of `trackers`"
            ) from error

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._put(lambda tracker: tracker.log(dict(numbers), step=step))

    def show(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Show images by prompt, where the tracker is one that Accelerate can give images to."""
        self._put(lambda tracker: _show(tracker, step, images))

    def _put(self, work: Callable[[Any], None]) -> None:
        if self.work.qsize() >= WAITING:
            self._lose(f"{WAITING} rows wait for it")
        else:
            self.work.put(work)

    def finish(self) -> None:
        """Log the rows that wait, and end."""
        self.work.put(None)
        self.thread.join(FINISH)
        if self.thread.is_alive():
            self._lose(f"it has not finished in {FINISH:g} s, with {self.work.qsize()} rows waiting")
        if self.lost > 1:
            self.troubles.put(f"tracker {self.name!r} is without {self.lost} rows; metrics.jsonl has all")

    def _work(self, cls: Any, run: str, folder: Path, started: "Future[None]") -> None:
        try:
            tracker = cls(run, folder) if cls.requires_logging_directory else cls(run)
            if hasattr(tracker, "start"):
                tracker.start()
        except BaseException as error:
            started.set_exception(error)
            return
        started.set_result(None)
        while (work := self.work.get()) is not None:
            try:
                work(tracker)
            except BaseException as error:  # SystemExit too: a library's thread may end no run
                self._lose(_told(error))
        try:
            tracker.finish()
        except BaseException as error:
            self._lose(_told(error))

    def _lose(self, why: str) -> None:
        if self.lost == 0:  # the first tells of all
            self.troubles.put(f"tracker {self.name!r} fails, and the run goes on without it: {why}")
        self.lost += 1


class Trackers:
    """All trackers of a run's config. Raises RunError for one that is not installed or does not start."""

    def __init__(self, names: Sequence[str], run: str, folder: Path) -> None:
        self.all: list[Tracker] = []
        try:
            for name in names:
                self.all.append(Tracker(name, run, folder))
        except BaseException:
            self.finish()
            raise

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        for tracker in self.all:
            tracker.log(step, numbers)

    def show(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        for tracker in self.all:
            tracker.show(step, images)

    def troubles(self) -> list[str]:
        """Return what has gone wrong since the last call."""
        return [tracker.troubles.get() for tracker in self.all for _ in range(tracker.troubles.qsize())]

    def finish(self) -> None:
        for tracker in self.all:
            tracker.finish()


def _show(tracker: Any, step: int, images: Mapping[str, np.ndarray]) -> None:
    """Give a tracker the images as `evaluation/images`: a grid, or one image after another with its prompt."""
    match tracker.name:
        case "tensorboard":
            alike: dict[tuple[int, ...], list[np.ndarray]] = {}
            for image in images.values():
                alike.setdefault(image.shape, []).append(image)
            for (height, width, _), grid in alike.items():  # a grid's images have one size
                name = "evaluation/images" + (f" {height} x {width}" if len(alike) > 1 else "")
                tracker.log_images({name: np.stack(grid)}, step=step, dataformats="NHWC")
        case "wandb" | "swanlab":
            library = importlib.import_module(tracker.name)
            shown = [library.Image(image, caption=prompt) for prompt, image in images.items()]
            tracker.log({"evaluation/images": shown}, step=step)
        case "aim":
            for place, (prompt, image) in enumerate(images.items()):
                tracker.log_images({f"evaluation/images/{place}": (image, prompt)}, step=step)
        case "clearml":
            for place, image in enumerate(images.values()):
                tracker.log_images({f"evaluation/images {place}": image}, step=step)


def _class_of(name: str, folder: Path) -> Any:
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, filter_trackers

    PartialState()
    known = {str(kind): cls for kind, cls in LOGGER_TYPE_TO_CLASS.items()}
    if name not in known or not filter_trackers([name], folder):
        raise RunError(f"tracker {name!r} is not installed; pip install it, or leave it out of `trackers`")
    return known[name]


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
