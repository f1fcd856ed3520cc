"""Planning: the memory by role, object stores and workers that a run will need, before anything starts.

Sizes come from running the roles' own code on tensors without data (hollow.py). So it needs no GPU, no weights and no
Ray: the JSON files in the model's folder are enough.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pcpo_ray.commands.plan import gpus, roles, sizes, switches
from pcpo_ray.commands.plan.roles import Memory, Store
from pcpo_ray.commands.plan.switches import Overrides, Remedy
from pcpo_ray.config import Run
from pcpo_ray.data.types import Size
from pcpo_ray.errors import ConfigError
from pcpo_ray.models import image_sizes
from pcpo_ray.workers.learner import mini_batches

NEEDED: dict[str, tuple[Callable[[Run], Memory | Store], Callable[[Run], Iterator[Overrides]]]] = {
    "sampler": (roles.sampler, switches.for_sampler),
    "scorer": (roles.scorer, switches.for_scorer),
    "learner": (roles.learner, switches.for_learner),
    "one process": (roles.one_process, switches.for_one_process),
    "object stores": (roles.store, switches.for_store),
}
"""Functions for each thing a run needs memory for: its size, and the switches that make it smaller."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The memory a run will take: each role's processes, and the object stores of all nodes together."""

    run: Run
    roles: tuple[Memory, ...]
    store: Store
    """The object stores; with --local the groups that the process itself keeps."""
    largest: Size | None = None
    """The largest of the prompts' own sizes, for which `run` was planned."""
    local: bool = False
    """True for all roles in one process."""
    uneven: Sequence[str] = ()
    """Which shares of the work cannot be even, a line each."""

    @property
    def main_memory(self) -> int:
        """Bytes in the memory of all machines together: what is on CPUs, beside GPUs and in the object stores."""
        held = [role.processes * (sum(role.beside.values()) if role.gpus else role.total) for role in self.roles]
        return sum(held) + self.store.total


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The available memory: a GPU by its name, and the bytes of all object stores together; None is not checked."""

    gpu: str | None = None
    store: float | None = None


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A comparison of `needed` and available bytes (`room`); `remedies` make it fit if it does not."""

    what: str
    needed: int
    room: float
    remedies: tuple[Remedy, ...] = ()

    @property
    def fits(self) -> bool:
        return self.needed <= self.room


def plan(run: Run, *, local: bool = False) -> Plan:
    """Compute the memory a run will take, or its process if it is `local`.

    Raises a PcpoError if its config, model or rewards are wrong.
    """
    run, largest = image_sizes.at_largest(run)
    if local:
        return Plan(run=run, roles=(roles.one_process(run),), store=roles.store(run), largest=largest, local=True)
    trained = sizes.trained_steps(run)
    mini_batches.check_ranks(run, trained)
    found = [role for role in (roles.sampler(run), roles.scorer(run), roles.learner(run)) if role.processes]
    uneven = mini_batches.uneven_shares(run, trained)
    return Plan(run=run, roles=tuple(found), store=roles.store(run), largest=largest, uneven=uneven)


def in_one_process(run: Run, *, gpu: str | None) -> Run:
    """Give each role the GPU that `train --local` would find. Raises ConfigError for several ranks."""
    ranks = run.workers.learner.ranks
    if ranks > 1:
        raise ConfigError(
            f"workers.learner.ranks is {ranks}, and one process has one rank; set workers.learner.ranks=1"
        )
    roles_with = [f"workers.{role}.gpus=1" for role in ("samplers", "scorers", "learner")]
    return run if gpu is None else switches.changed(run, roles_with)


def judge(planned: Plan, room: Budget) -> list[Fit]:
    """Judge what fits, and find switches that make the rest fit. Raises ConfigError for an unknown GPU."""
    found = []
    for role in planned.roles:
        if room.gpu is not None and role.gpus:
            memory = gpus.memory_of(room.gpu) * min(1.0, role.gpus)
            found.append(_judged(planned.run, role.role, role.total, memory))
    if room.gpu is not None and not found:
        gpus.memory_of(room.gpu)
        raise ConfigError(
            f"--gpu {room.gpu}: no role of this config has a GPU; give them some, such as workers.learner.gpus=1 "
            "workers.samplers.gpus=1 workers.scorers.gpus=1, or leave out --gpu"
        )
    if room.store is not None:
        found.append(_judged(planned.run, "object stores", planned.store.needed, room.store))
    return found


def _judged(run: Run, what: str, needed: int, room: float) -> Fit:
    if needed <= room:
        return Fit(what=what, needed=needed, room=room)
    size, candidates = NEEDED[what]

    def measured(changed: Run) -> tuple[int, float]:
        """Return the bytes needed with another config, and those of its fraction of the GPU."""
        found = size(changed)
        if isinstance(found, Store):
            return found.needed, room
        return found.total, room * min(1.0, found.gpus) / min(1.0, share)

    share = getattr(size(run), "gpus", 1.0)
    return Fit(what=what, needed=needed, room=room, remedies=switches.remedies(run, candidates(run), measured))


def together(planned: Plan, verdicts: list[Fit], room: Budget) -> tuple[Overrides, list[Fit]]:
    """Combine the first remedies of all that does not fit, and judge the whole plan with them."""
    overrides = switches.merged(
        override for verdict in verdicts for remedy in verdict.remedies[:1] for override in remedy.overrides
    )
    return overrides, judge(plan(switches.changed(planned.run, overrides), local=planned.local), room)
