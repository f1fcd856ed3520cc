"""Pace: what a group costs each role, from a probe or a finished run, and how many workers that asks for."""

import dataclasses
import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from pcpo_ray.commands.plan import sizes
from pcpo_ray.config import Run
from pcpo_ray.data import prompts
from pcpo_ray.data.tensors import device_here
from pcpo_ray.data.types import Task
from pcpo_ray.errors import RunError
from pcpo_ray.runs import configs, lines
from pcpo_ray.training.scheduling import sizing
from pcpo_ray.workers.learner import mini_batches
from pcpo_ray.workers.learner.learner import Learner
from pcpo_ray.workers.sampler import Sampler
from pcpo_ray.workers.scorer import Scorer

T = TypeVar("T")

ROLES = ("samplers", "scorers")

SAME = ("model", "sampling", "rewards", "objective")
"""Keys that a group's cost depends on, besides its images and the number of times it is trained on."""


RATE = 1e-12
"""A learning rate too small to change the weights."""

FORWARD, FORWARD_OF_CHECKPOINTED = 1 / 3, 1 / 4
"""The part of a forward and backward pass that one prediction takes, without and with gradient checkpointing."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds that a group takes one sampler, one scorer and one of the learner's ranks; `source` says who measured."""

    seconds: Mapping[str, float]
    source: str


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """The consequences of a pace for a run: `work` is the seconds of a batch's work by role, over all workers.

    `fitting` is the number of workers at which one more hardly shortens a step. `idle` fractions and `seconds` per step
    hold for the config's own numbers, `sizes`.
    """

    sizes: Mapping[str, int]
    work: Mapping[str, float]
    seconds: float
    idle: Mapping[str, float]
    fitting: Mapping[str, int]
    fitting_seconds: float


def probe(run: Run, say: Callable[[str], None]) -> Pace:
    """Sample, score and learn some images of one prompt in this process, a role after the other, each twice.

    The second time counts, scaled to a whole group: as many images as go through the network at once are measured.
    """
    device = device_here()
    images = run.sampling.together(run.rollout.images)
    prompt = prompts.sources(run)[0].batch(1, 1)[0]
    task = Task(step=1, position=0, prompt=prompt, images=images, version=0, purpose="train")
    scale = run.rollout.images / images
    seconds = {}

    say(f"probe: sampling {images} images on {device}")
    torch.set_num_threads(run.workers.samplers.threads)
    sampler = Sampler(run, device)
    sampler.prepare(task)
    (trajectory, drawn), seconds["samplers"] = _second_time(lambda: sampler.sample(task))
    assert trajectory is not None
    trajectory = trajectory.to(torch.device("cpu"))
    del sampler
    _tidy()

    say("probe: scoring them")
    torch.set_num_threads(run.workers.scorers.threads)
    scorer = Scorer(run, device)
    (_, failures, _), seconds["scorers"] = _second_time(lambda: scorer.score(task, drawn))
    for name, cause in failures.items():
        say(f"probe: {name} gave no score: {cause}")
    del scorer
    _tidy()

    say("probe: learning them")
    torch.set_num_threads(run.workers.learner.threads)
    # the second update must still find the weights that sampled, where the mismatch is measured
    still = dataclasses.replace(run.optimizer, learning_rate=RATE)
    learner = Learner(dataclasses.replace(run, optimizer=still), device)
    recomputed = run.objective.old_predictions == "recomputed"
    advantages = np.linspace(-1.0, 1.0, images).tolist()

    def learn() -> None:
        version = learner.version if recomputed else 0
        learner.update(learner.version + 1, [(version, trajectory, advantages)])

    _, seconds["learner"] = _second_time(learn)
    del learner
    _tidy()
    where = torch.cuda.get_device_name() if device.type == "cuda" else "this machine's CPU"
    return Pace(seconds={role: scale * spent for role, spent in seconds.items()}, source=f"a probe on {where}")


def _second_time(work: Callable[[], T]) -> tuple[T, float]:
    """The first is slower than all that follow: what it computes with is still being chosen and read."""
    work()
    started = time.perf_counter()
    found = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return found, time.perf_counter() - started


def _tidy() -> None:
    """So that the next role has the memory that it will have on its own."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def recorded(folder: Path, run: Run) -> Pace:
    """From what a run recorded. Raises RunError where its groups cost something else than those of `run`."""
    other = configs.read(folder)
    differing = [name for name in SAME if getattr(other, name) != getattr(run, name)]
    differing += ["rollout.images"] * (other.rollout.images != run.rollout.images)
    ours, theirs = (dataclasses.replace(r.optimizer, minibatches=1, learning_rate=1.0) for r in (run, other))
    differing += ["optimizer"] * (ours != theirs)
    if differing:
        raise RunError(
            f"{folder} has another {', '.join(differing)} than this config, so its speed says nothing about it; "
            "plan the run's own config.yaml, or use --probe"
        )
    found = lines.metrics(folder / "metrics.jsonl").rows
    rows = [row for row in found if row["kind"] == "train" and "busy_seconds" in row]
    if not rows:
        raise RunError(f"{folder} has recorded no step's busy seconds; let it take a step, or use --probe")

    counts = {role: other.rollout.prompts for role in ROLES} | {"learner": turns(other)}
    ranks = other.workers.learner.ranks
    seconds = {
        role: statistics.median(_busy(row, ranks)[role] for row in rows) / count for role, count in counts.items()
    }
    return Pace(seconds=seconds, source=f"{len(rows)} steps of {folder}")


def _busy(row: Mapping[str, Any], ranks: int) -> dict[str, float]:
    """Return the seconds that each role's work took in a step, whoever did it."""
    found = {role: sum(row["busy_seconds"].get(role, {}).values()) for role in (*ROLES, "learner")}
    lent = row.get("lent_seconds", 0.0)
    return found | {"samplers": found["samplers"] + lent, "learner": found["learner"] - lent / ranks}


def turns(run: Run) -> float:
    """Count the groups of a batch, or parts of them, that the busiest rank trains on in turn.

    Old predictions that it takes before count as the part of a pass that they are.
    """
    ranks, steps, asked = run.workers.learner.ranks, sizes.trained_steps(run), run.optimizer.micro_batch
    a_group = (run.rollout.images, steps)
    length = mini_batches.length_of(run, asked if isinstance(asked, int) else None)
    pairs = 0.0
    for part in mini_batches.split_groups(run.optimizer, run.rollout.prompts, seed=run.seed, step=1):
        blocks = mini_batches.cut_into_blocks(dict.fromkeys(part, a_group), length)
        pairs += max(sum(map(len, mini_batches.rank_share(blocks, rank, ranks))) for rank in range(ranks))
    forward = FORWARD_OF_CHECKPOINTED if run.model.gradient_checkpointing else FORWARD
    pairs += forward * sizes.recomputed_pairs(run)[0]
    return pairs / (run.rollout.images * steps * run.optimizer.epochs)


def forecast(run: Run, pace: Pace) -> Forecast:
    """Forecast the length of a step, who waits in it, and how many workers would keep waits short."""
    groups = run.rollout.prompts
    work = {role: groups * pace.seconds[role] for role in ROLES}
    learning = turns(run) * pace.seconds["learner"]
    lent = run.workers.learner.ranks if run.workers.learner.samples else 0
    seen = sizing.Seen(
        work=work, learning=learning, groups=groups, overlapped=run.rollout.max_staleness > 0, ranks=lent
    )
    sizes = {"samplers": run.workers.samplers.workers, "scorers": run.workers.scorers.workers}
    bounds = {role: (1, groups) for role in ROLES if role == "scorers" or not lent}
    fitting = sizes | dict.fromkeys(bounds, 1)
    for _ in range(2 * groups):  # one worker more a role at a time
        fitting = sizing.better(seen, fitting, bounds)
    seconds = seen.seconds(sizes)
    # of ranks that sample, each takes its part of that work
    a_sampler = work["samplers"] / (sizes["samplers"] + lent)
    busy = {
        "samplers": a_sampler if sizes["samplers"] else a_sampler + learning,
        "scorers": work["scorers"] / sizes["scorers"],
        "learner": learning + (a_sampler if lent else 0.0),
    }
    return Forecast(
        sizes=sizes,
        work={**work, "learner": learning},
        seconds=seconds,
        idle={role: max(0.0, 1 - spent / seconds) for role, spent in busy.items()},
        fitting=fitting,
        fitting_seconds=seen.seconds(fitting),
    )
