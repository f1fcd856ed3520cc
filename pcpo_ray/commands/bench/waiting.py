"""Waiting, each time with a deadline."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

from pcpo_ray.errors import BenchError
from pcpo_ray.training.stages import Stages

T = TypeVar("T")

DEADLINE = 600.0
"""Seconds that anything may take."""


def until(stages: Stages, found: Callable[[], T | None], awaited: str) -> T:
    """What `found` gives once it is something; meanwhile the stages work. Raises BenchError at the deadline."""
    deadline = time.monotonic() + DEADLINE
    while (value := found()) is None:
        if time.monotonic() > deadline:
            raise late(awaited)
        stages.wait(1.0)
    return value


def collected(stages: Stages, collect: Callable[[], list[T]], count: int, awaited: str) -> list[T]:
    """What `collect` gives, bit by bit, until there are so many."""
    found: list[T] = []

    def complete() -> list[T] | None:
        found.extend(collect())
        return found if len(found) == count else None

    return until(stages, complete, awaited)


def settled(stages: Stages, samplers: int) -> None:
    """Wait until so many samplers are ready."""

    def ready() -> bool | None:
        stages.samplers.collect()
        return stages.pool_status()["samplers"].ready == samplers or None

    until(stages, ready, f"{samplers} samplers")


def answers(references: list[Any], awaited: str) -> list[Any]:
    """Of Ray's references. Raises BenchError at the deadline."""
    import ray

    try:
        return list(ray.get(references, timeout=DEADLINE))
    except ray.exceptions.GetTimeoutError:
        raise late(awaited) from None


def late(awaited: str) -> BenchError:
    return BenchError(f"waited {DEADLINE:g} s for {awaited}; is the machine busy? Ray's logs are in /tmp/ray")
