"""The status of a run whose workers start; from then on `training.control` makes it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pcpo_ray.data.records import PoolStatus, StartingStatus

if TYPE_CHECKING:
    from pcpo_ray.config import Run


def starting(
    run: "Run", waiting: str = "the workers to start", ready: Mapping[str, int] | None = None
) -> StartingStatus:
    """Make the status of a run that waits for workers, of which so many are `ready`, by role."""
    pools = {"samplers": run.workers.samplers, "scorers": run.workers.scorers}
    sizes = {role: PoolStatus(wanted=pool.workers, ready=(ready or {}).get(role, 0)) for role, pool in pools.items()}
    return StartingStatus(
        run=run.name, steps=run.steps, waiting=waiting, samplers=sizes["samplers"], scorers=sizes["scorers"]
    )
