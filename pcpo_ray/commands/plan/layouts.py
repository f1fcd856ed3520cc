"""Layouts: who samples and who learns, of the processes (GPUs) there are, and what a step takes in each.

Who samples changes no result (workers.learner.samples), and the number of ranks only the order in which gradients are
summed. So the fastest layout that fits is the one to take.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from pcpo_ray.commands.plan import gpus, roles, switches
from pcpo_ray.commands.plan.pace import Pace, forecast
from pcpo_ray.commands.plan.sizes import trained_steps
from pcpo_ray.commands.plan.switches import Overrides
from pcpo_ray.config import Run
from pcpo_ray.workers.learner import mini_batches

Name = Literal["split", "hybrid", "colocated"]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """So many samplers and ranks, and the forecast of a step. `fits` is None where no GPU was named, or none is used.

    `overrides` choose it.
    """

    name: Name
    samplers: int
    ranks: int
    seconds: float
    fits: bool | None
    overrides: Overrides

    @property
    def processes(self) -> int:
        return self.samplers + self.ranks


def layouts(run: Run, pace: Pace, processes: int | None, gpu: str | None) -> list[Layout]:
    """Lay out processes (None: as many as the config has) in each way, the fastest numbers of each.

    What fits comes first, then the faster; of equally fast ones the first of split, hybrid and colocated. A split needs
    two processes.
    """
    count = processes or run.workers.samplers.workers + run.workers.learner.ranks
    most = mini_batches.fewest_blocks(run, trained_steps(run))
    found = []
    for name in get_args(Name):
        tried = [_layout(run, pace, name, samplers, ranks) for samplers, ranks in _numbers(name, count, most)]
        if tried:
            seconds, overrides, changed = min(tried, key=lambda one: one[0])
            found.append(
                Layout(
                    name=name,
                    samplers=changed.workers.samplers.workers,
                    ranks=changed.workers.learner.ranks,
                    seconds=seconds,
                    fits=_fits(changed, gpu),
                    overrides=overrides,
                )
            )
    return sorted(found, key=lambda one: (one.fits is False, one.seconds))


def _numbers(name: Name, count: int, most: int) -> Iterator[tuple[int, int]]:
    """Yield numbers of samplers and ranks, the latter at most as many as find something to learn."""
    for ranks in range(1, min(count, most) + 1):
        if (name == "colocated") == (ranks == count):
            yield count - ranks, ranks


def _layout(run: Run, pace: Pace, name: Name, samplers: int, ranks: int) -> tuple[float, Overrides, Run]:
    overrides = (
        f"workers.samplers.workers={samplers}",
        f"workers.learner.ranks={ranks}",
        f"workers.learner.samples={str(name != 'split').lower()}",
        *(["workers.learner.offload=false"] if run.workers.learner.offload and ranks == 1 else []),
    )
    fixed = ("workers.samplers.min=1", "workers.samplers.max=null")
    changed = switches.changed(run, (*fixed, *overrides))
    return forecast(changed, pace).seconds, overrides, changed


def _fits(run: Run, gpu: str | None) -> bool | None:
    """Return whether samplers and ranks fit the GPU."""
    used = [role for role in (roles.sampler(run), roles.learner(run)) if role.processes and role.gpus]
    if gpu is None or not used:
        return None
    return all(role.total <= gpus.memory_of(gpu) * min(1.0, role.gpus) for role in used)
