"""Startup: from the command to the first sample, against importing torch and diffusers and starting Ray."""

import dataclasses
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from pcpo_ray import config
from pcpo_ray.commands.bench.rows import Goal, Row, Say, alternate
from pcpo_ray.commands.bench.waiting import DEADLINE, late
from pcpo_ray.config import files
from pcpo_ray.errors import BenchError

EVERY = 0.02
"""Seconds between two checks for a sample: the precision of the figure."""

BARE = """
import torch, diffusers, ray, pathlib, signal, sys
ray.init(address="local", log_to_driver=False, logging_level="ERROR")
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit())
pathlib.Path(sys.argv[1]).touch()
signal.pause()
"""


class Arrival:
    """A reward that creates a file when the first images arrive."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def score(self, images: UInt8[np.ndarray, "N H W 3"], prompts: Sequence[str]) -> list[float]:
        self.path.touch()
        return [0.0] * len(images)


def measured_on(run: config.Run) -> config.Run:
    """Reduce the config to its first step, after an evaluation of one prompt."""
    return dataclasses.replace(
        run,
        steps=1,
        rollout=dataclasses.replace(run.rollout, prompts=run.optimizer.minibatches),
        evaluation=config.Evaluation(
            prompts=run.evaluation.prompts, held_out=run.evaluation.held_out, count=1, images=2
        ),
        trackers=(),
    )


def measure(run: config.Run, repeats: int, say: Say) -> Sequence[Row]:
    """Measure one command and one bare process per repeat; the first of each, with a cold disk, does not count."""
    figures, limits = alternate(lambda: first_sample(run), bare, repeats, say)
    row = Row(
        name="start",
        unit="s",
        figures=figures,
        limits=limits,
        limit="a process that imports torch and diffusers and starts Ray",
        goal=Goal(bound="at most", value=1.5),
    )
    return [row]


def first_sample(run: config.Run) -> float:
    """Measure the seconds from `pcpo-ray train` to the first images at a scorer."""
    with tempfile.TemporaryDirectory() as folder:
        path, seen = Path(folder) / "run.yaml", Path(folder) / "seen"
        arrival = config.CustomReward(kind=f"{__name__}:{Arrival.__name__}", options={"path": str(seen)})
        evaluation = dataclasses.replace(run.evaluation, rewards=(arrival,))
        path.write_text(files.dump(dataclasses.replace(run, evaluation=evaluation)), encoding="utf-8")
        return until_there(["-m", "pcpo_ray.commands.app", "train", str(path), "--runs", folder], seen)


def bare() -> float:
    """Measure the seconds until the limit's process is ready."""
    with tempfile.TemporaryDirectory() as folder:
        seen = Path(folder) / "seen"
        return until_there(["-c", BARE, str(seen)], seen)


def until_there(arguments: Sequence[str], seen: Path) -> float:
    """Measure the seconds until a Python process creates a file, and end it. Raises BenchError if it does not end."""
    what = f"python {arguments[0]} {arguments[1].strip().splitlines()[0]} ..."
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        started = time.perf_counter()
        process = subprocess.Popen([sys.executable, *arguments], stdout=log, stderr=subprocess.STDOUT)
        try:
            while not seen.exists():
                if process.poll() is not None:
                    log.seek(0)
                    raise BenchError(f"{what} ended with {process.returncode} before a sample: {log.read()[-2000:]}")
                if time.perf_counter() - started > DEADLINE:
                    raise late(what)
                time.sleep(EVERY)
            seconds = time.perf_counter() - started
            process.terminate()
            process.wait(timeout=DEADLINE)
        except subprocess.TimeoutExpired:
            raise late(f"{what} to end") from None
        finally:
            process.kill()
            process.wait(timeout=DEADLINE)
    return seconds
