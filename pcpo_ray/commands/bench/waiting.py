"""Waiting with deadlines."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

from pcpo_ray.errors import BenchError
from pcpo_ray.training.stages import Stages

T = TypeVar("T")

DEADLINE = 600.0
"""The deadline of every wait, in seconds."""


def until(stages: Stages, found: Callable[[], T | None], awaited: str) -> T:
    """Let the stages work until `found` returns something, and return that. Raises BenchError at the deadline."""
    deadline = time.monotonic() + DEADLINE
    while (value := found()) is None:
        if time.monotonic() > deadline:
            raise late(awaited)
        stages.wait(1.0)
    return value


def collected(stages: Stages, collect: Callable[[], list[T]], count: int, awaited: str) -> list[T]:
    """Call `collect` until it has returned so many items."""
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
    """Get the values of Ray's references. Raises BenchError at the deadline."""
    import ray

    try:
        return list(ray.get(references, timeout=DEADLINE))
    except ray.exceptions.GetTimeoutError:
        raise late(awaited) from None


def late(awaited: str) -> BenchError:
    return BenchError(f"waited {DEADLINE:g} s for {awaited}; is the machine busy? Ray's logs are in /tmp/ray")
