"""New weights: from publishing until all samplers have acknowledged them, against one copy of their bytes a process."""

import dataclasses
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import psutil

from pcpo_ray import config
from pcpo_ray.commands import session
from pcpo_ray.commands.bench import large, simulated, work
from pcpo_ray.commands.bench.rows import Goal, Row, Say, alternate
from pcpo_ray.commands.bench.waiting import DEADLINE, answers, settled
from pcpo_ray.data import weights
from pcpo_ray.errors import BenchError

if TYPE_CHECKING:
    from pcpo_ray.cluster.stages import RayStages

R = TypeVar("R", config.Role, config.LearnerRole)

SAMPLERS = 4
SHARE = 0.15
"""Of a core, and of a GPU where the role has one: all workers are to be on one node."""

SMALL = 64 * 2**20
"""Bytes, of an adapter: below, what counts is the time itself."""

SECONDS_OF_SMALL = Goal(bound="at most", value=0.2, of="figure")
COPIES_OF_LARGE = Goal(bound="at most", value=3.0)

COPIES = 5

LIMIT = f"one copy of the bytes in each of {SAMPLERS} processes at once, the slowest of them"

NEEDED = 20 * 10**9
"""Bytes of memory that a whole network takes: learner, samplers, two versions in the object store, the copies."""


def measured_on(run: config.Run) -> config.Run:
    """The config's model on `SAMPLERS` samplers; the reward is one that loads nothing."""
    workers = run.workers
    return dataclasses.replace(
        run,
        rewards=(config.Jpeg(kind="jpeg_compressibility"),),
        evaluation=config.Evaluation(),
        workers=dataclasses.replace(
            workers,
            samplers=work.counted(_small(workers.samplers), SAMPLERS),
            scorers=work.counted(_small(workers.scorers), 1),
            learner=_small(workers.learner),
            start_timeout=DEADLINE,
            task_timeout=DEADLINE,
        ),
    )


def _small(role: R) -> R:
    return dataclasses.replace(role, cpus=SHARE, gpus=SHARE if role.gpus else 0.0)


def measure(run: config.Run, repeats: int, say: Say) -> Sequence[Row]:
    """A repeat is one version to all samplers, and one copy of as many bytes in as many processes at once.

    Of the config's weights, and where they are few, of those of a whole network too, whatever the config.
    """
    free = psutil.virtual_memory().available  # afterwards, processes that are ending still have some
    own, size = _measured(run, repeats, say)
    return [own] if size > SMALL else [own, _of_a_whole_network(run, free, repeats, say)]


def _of_a_whole_network(run: config.Run, free: int, repeats: int, say: Say) -> Row:
    if free < NEEDED:
        return _unmeasured(run, f"it takes {NEEDED / 1e9:.0f} GB of memory, and {free / 1e9:.1f} are free")
    if os.environ.get("RAY_ADDRESS", "local") != "local":
        return _unmeasured(run, "its model is written on this machine, and RAY_ADDRESS names a cluster")
    with tempfile.TemporaryDirectory() as folder:
        say(f"writing a model of {large.BYTES / 1e9:.3g} GB to {folder}")
        # in a process of its own: this one's peak of memory is a figure of another benchmark
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as apart:
            model = apart.submit(large.write, Path(folder) / "large", large.WIDTHS).result(DEADLINE)
        workers = dataclasses.replace(
            run.workers, learner=dataclasses.replace(run.workers.learner, ranks=1, strategy="ddp")
        )
        # only the other settings are those of simulated work: this network is a real one
        made = simulated.run(simulated.Sleeping, samplers=SAMPLERS, prompts=1, scoring=0.0)
        row, _ = _measured(dataclasses.replace(made, model=model, workers=workers), repeats, say)
    return row


def _unmeasured(run: config.Run, why: str) -> Row:
    """The row as it would be called if it were."""
    return Row(name=_name(large.BYTES, run), unit="s", limit=LIMIT, goal=COPIES_OF_LARGE, unmeasured=why)


def _measured(run: config.Run, repeats: int, say: Say) -> tuple[Row, int]:
    """The row, and how many bytes were sent."""
    stages = cast("RayStages", session.stages(run, local=False, say=say))
    try:
        return _sent(run, stages, repeats, say)
    finally:
        stages.close()


def _sent(run: config.Run, stages: "RayStages", repeats: int, say: Say) -> tuple[Row, int]:
    settled(stages, SAMPLERS)
    published = stages.publish(oldest=0)

    def acknowledged() -> float:
        started = time.perf_counter()
        sent = stages.publish(oldest=0)
        references = list(stages.versions[sent.version, sent.averaged].references)
        members = stages.samplers.members()
        if len(members) != SAMPLERS:
            raise BenchError(f"{len(members)} of {SAMPLERS} samplers are left; Ray's logs are in /tmp/ray")
        pulling = [
            actor.pull.remote(sent.version, references) for name, actor in members.items() if name not in sent.received
        ]
        for checksum in answers(pulling, "samplers to pull"):
            if checksum != sent.checksum:
                raise BenchError(f"a sampler has weights of checksum {checksum}; published were {sent.checksum}")
        return time.perf_counter() - started

    copied = _copier(published.bytes)
    figures, limits = alternate(acknowledged, copied, repeats, say)
    row = Row(
        name=_name(published.bytes, run),
        unit="s",
        figures=figures,
        limits=limits,
        limit=LIMIT,
        goal=SECONDS_OF_SMALL if published.bytes <= SMALL else COPIES_OF_LARGE,
        facts={"trained": run.model.train.kind, "samplers": SAMPLERS},
    )
    return row, published.bytes


def _name(count: int, run: config.Run) -> str:
    size = f"{count / 1e6:.3g} MB" if count < 1e9 else f"{count / 1e9:.3g} GB"
    return f"weights, {size}, {run.workers.sync}"


class Copies:
    """A process that copies so many bytes, a bucket at a time, between pieces of memory that it has used before.

    A process of its own throughout: a task's would come and go, and its imports take the processors from the samplers.
    """

    def __init__(self, size: int) -> None:
        bucket = min(size, weights.BUCKET)
        self.parts = [slice(min(bucket, size - done)) for done in range(0, size, bucket)]
        self.source, self.target = np.ones(bucket, np.uint8), np.zeros(bucket, np.uint8)

    def seconds(self) -> float:
        """Of one copy, the median of `COPIES`."""
        found = []
        for _ in range(COPIES):
            started = time.perf_counter()
            for part in self.parts:
                np.copyto(self.target[part], self.source[part])
            found.append(time.perf_counter() - started)
        return statistics.median(found)


def _copier(size: int) -> Any:
    """What copies so many bytes in as many processes as there are samplers; its seconds are those of the slowest."""
    import ray

    copying = [ray.remote(num_cpus=0)(Copies).remote(size) for _ in range(SAMPLERS)]
    return lambda: max(answers([actor.seconds.remote() for actor in copying], "processes to copy"))
