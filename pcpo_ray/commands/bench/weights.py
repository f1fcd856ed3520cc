"""New weights: from publishing to all samplers' acknowledgements, against one copy of their bytes per process."""

import dataclasses
import multiprocessing
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
from pcpo_ray.process.ray_address import OWN, ray_address

if TYPE_CHECKING:
    from pcpo_ray.cluster.stages import RayStages

R = TypeVar("R", config.Role, config.LearnerRole)

SAMPLERS = 4
SHARE = 0.15
"""The fraction of a core, and of any GPU, per worker, so that all workers fit one node."""

SMALL = 64 * 2**20
"""Bytes below which weights count as small, such as an adapter's, and the time itself matters."""

SECONDS_OF_SMALL = Goal(bound="at most", value=0.2, of="figure")
COPIES_OF_LARGE = Goal(bound="at most", value=3.0)

COPIES = 5

LIMIT = f"one copy of the bytes in each of {SAMPLERS} processes at once, the slowest of them"

NEEDED = 20 * 10**9
"""Bytes of memory for a whole network: learner, samplers, two versions in the object store, the copies."""


def measured_on(run: config.Run) -> config.Run:
    """Put the config's model on `SAMPLERS` samplers, with a reward that loads nothing."""
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
    """Measure one version to all samplers, and one copy of its bytes in as many processes at once, per repeat.

    It is measured for the config's weights and, if they are small, for those of a whole network too.
    """
    free = psutil.virtual_memory().available  # measured first: later, processes that are ending still hold memory
    own, size = _measured(run, repeats, say)
    return [own] if size > SMALL else [own, _of_a_whole_network(run, free, repeats, say)]


def _of_a_whole_network(run: config.Run, free: int, repeats: int, say: Say) -> Row:
    if free < NEEDED:
        return _unmeasured(run, f"it takes {NEEDED / 1e9:.0f} GB of memory, and {free / 1e9:.1f} are free")
    if ray_address() != OWN:
        return _unmeasured(run, "its model is written on this machine, and RAY_ADDRESS names a cluster")
    with tempfile.TemporaryDirectory() as folder:
        say(f"writing a model of {large.BYTES / 1e9:.3g} GB to {folder}")
        # in another process: this one's peak memory is a figure of another benchmark
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as apart:
            model = apart.submit(large.write, Path(folder) / "large", large.WIDTHS).result(DEADLINE)
        workers = dataclasses.replace(
            run.workers, learner=dataclasses.replace(run.workers.learner, ranks=1, strategy="ddp")
        )
        # settings of simulated work, but a real network
        made = simulated.run(simulated.Sleeping, samplers=SAMPLERS, prompts=1, scoring=0.0)
        row, _ = _measured(dataclasses.replace(made, model=model, workers=workers), repeats, say)
    return row


def _unmeasured(run: config.Run, why: str) -> Row:
    """Make the row without figures, under the name that it would have."""
    return Row(name=_name(large.BYTES, run), unit="s", limit=LIMIT, goal=COPIES_OF_LARGE, unmeasured=why)


def _measured(run: config.Run, repeats: int, say: Say) -> tuple[Row, int]:
    """Measure the row, and return it with the number of bytes sent."""
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
    """A process that copies so many bytes, bucket by bucket, between pieces of memory that it has used before.

    It lives throughout: a task's process would come and go, and its imports would take cores from the samplers.
    """

    def __init__(self, size: int) -> None:
        bucket = min(size, weights.BUCKET)
        self.parts = [slice(min(bucket, size - done)) for done in range(0, size, bucket)]
        self.source, self.target = np.ones(bucket, np.uint8), np.zeros(bucket, np.uint8)

    def seconds(self) -> float:
        """Return the median seconds of `COPIES` copies."""
        found = []
        for _ in range(COPIES):
            started = time.perf_counter()
            for part in self.parts:
                np.copyto(self.target[part], self.source[part])
            found.append(time.perf_counter() - started)
        return statistics.median(found)


def _copier(size: int) -> Any:
    """Make a function that copies so many bytes in a process per sampler and returns the slowest's seconds."""
    import ray

    copying = [ray.remote(num_cpus=0)(Copies).remote(size) for _ in range(SAMPLERS)]
    return lambda: max(answers([actor.seconds.remote() for actor in copying], "processes to copy"))
