"""Layouts: seconds a step with separate samplers, with ranks that sample, and with both, against one process.

All layouts stand side by side and make the same steps in turn, each with as many threads as the machine has cores,
or as many processes of one thread.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from pcpo_ray import config
from pcpo_ray.commands import session
from pcpo_ray.commands.bench import work
from pcpo_ray.commands.bench.backends import Steps
from pcpo_ray.commands.bench.rows import Goal, Row, Say
from pcpo_ray.commands.bench.waiting import DEADLINE
from pcpo_ray.workers.learner import mini_batches

SHARE = 0.01
"""CPUs that Ray reserves for each process: all layouts are there at once, and one works at a time."""


class Layout(NamedTuple):
    """Numbers of samplers and ranks, and whether the ranks sample."""

    samplers: int
    ranks: int
    samples: bool


def layouts(cores: int) -> dict[str, Layout]:
    """List the layouts to compare on so many cores; the split one has as many processes as a config by default."""
    return {
        "split": Layout(1, 1, False),
        "colocated": Layout(0, cores, True),
        "hybrid": Layout(1, cores, True),
    }


def measured_on(run: config.Run) -> config.Run:
    """Make steps synchronous, and free of what some layouts would choose otherwise."""
    micro_batch = None if run.optimizer.micro_batch == "auto" else run.optimizer.micro_batch
    return dataclasses.replace(
        run,
        rollout=dataclasses.replace(run.rollout, max_staleness=0),
        optimizer=dataclasses.replace(run.optimizer, micro_batch=micro_batch),
        workers=dataclasses.replace(run.workers, start_timeout=DEADLINE, task_timeout=DEADLINE),
    )


def laid_out(run: config.Run, name: str, layout: Layout, threads: int = 1) -> config.Run:
    """Return the run in a layout, with so many threads each process."""
    small: dict[str, Any] = {"threads": threads, "cpus": SHARE}
    workers = run.workers
    learner = dataclasses.replace(workers.learner, ranks=layout.ranks, samples=layout.samples, **small)
    return dataclasses.replace(
        run,
        name=f"{run.name}-{name}",
        workers=dataclasses.replace(
            workers,
            samplers=dataclasses.replace(work.counted(workers.samplers, layout.samplers), **small),
            scorers=dataclasses.replace(work.counted(workers.scorers, 1), **small),
            learner=learner,
        ),
    )


def measure(run: config.Run, repeats: int, say: Say) -> Sequence[Row]:
    """Measure one step in each layout per repeat."""
    cores = os.cpu_count() or 1
    there = {name: laid_out(run, name, layout) for name, layout in layouts(cores).items()}
    for one in there.values():
        session.check_steps(one)
    with contextlib.ExitStack() as ending:
        steps: dict[str, Callable[[], float]] = {}
        here = laid_out(run, "in-process", Layout(1, 1, False), cores)
        steps["in-process"] = Steps(here, session.stages(here, local=True, say=say))
        for name, one in there.items():
            stages = session.stages(one, local=False, say=say)
            ending.callback(stages.close)
            steps[name] = Steps(one, stages)
        found = _in_turn(steps, repeats, say)
    better = tuple(map(min, found["split"], found["colocated"]))
    facts = {"images a step": run.rollout.prompts * run.rollout.images, "cores": cores}
    rows = [
        ("split", "in-process", f"in one process with {cores} threads", None, found["in-process"]),
        ("colocated", "in-process", f"in one process with {cores} threads", 0.88, found["in-process"]),
        ("colocated", "split", "with one sampler and one rank", 0.76, found["split"]),
        ("hybrid", "the better", "split or colocated, the faster of each repeat", 1.0, better),
    ]
    return [
        Row(
            name=f"{name} against {other}",
            unit="s a step",
            figures=found[name],
            limits=limits,
            limit=f"the same steps {against}",
            goal=None if goal is None else Goal(bound="at most", value=goal),
            facts=facts | {"uneven": mini_batches.uneven_shares(there[name], _trained(run))},
        )
        for name, other, against, goal, limits in rows
    ]


def _trained(run: config.Run) -> int:
    from pcpo_ray.models import steps

    return steps.trained_steps(run)


def _in_turn(steps: dict[str, Callable[[], float]], repeats: int, say: Say) -> dict[str, tuple[float, ...]]:
    """Call each once to warm up, then all in turn, beginning with another one in each repeat."""
    say("warming up")
    for step in steps.values():
        step()
    found: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for repeat in range(repeats):
        first = repeat % len(names)
        for name in (*names[first:], *names[:first]):
            found[name].append(steps[name]())
        say(f"repeat {repeat + 1} of {repeats}: " + ", ".join(f"{name} {found[name][-1]:.4g} s" for name in names))
    return {name: tuple(seconds) for name, seconds in found.items()}
