"""The three protocols that the loop is written against, and Stages, which holds one of each.

Two implementations: `pcpo_ray.training.local` in this process, `pcpo_ray.cluster.stages` on Ray. Calls that block have
a deadline in both: `wait`, `publish`, `publish_lost`, `republish`, `save`, `restore`, `recover`, `fetch` and `end`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from pcpo_ray.data.records import PoolStatus, RunStatus
from pcpo_ray.data.requests import Fault, Request
from pcpo_ray.data.types import Handle, Rollout, Scored, Task
from pcpo_ray.data.updates import DriverState, Published, TrainingGroup, Update
from pcpo_ray.training.scheduling.workers import Note

if TYPE_CHECKING:
    from pcpo_ray.runs.folder import RunFolder


class Samplers(Protocol):
    """Consumes tasks; waits for the weights that a task names; unblocks the scorers."""

    def submit(self, task: Task) -> None:
        """Queue a task; its weights must have been published."""

    def collect(self) -> list[Rollout]:
        """Return the groups finished since the last call, in no particular order."""

    def lost(self) -> list[Task]:
        """Return the tasks, since the last call, whose weights were published, and are gone."""

    def cancel(self) -> None:
        """Forget every task: none of them will be collected."""


class Scorers(Protocol):
    """Consumes rollouts; unblocks the advantages."""

    def submit(self, rollout: Rollout) -> None:
        """Queue a rollout."""

    def collect(self) -> list[Scored]:
        """Return the groups scored since the last call, in no particular order."""

    def lost(self) -> list[Rollout]:
        """Return the rollouts, since the last call, whose images were gone when they were to be scored."""

    def cancel(self) -> None:
        """Forget every rollout: none of them will be collected."""


class LearnerGroup(Protocol):
    """Consumes training groups; its updates unblock `publish`.

    Every method may raise LearnerLostError; after `recover` the group is as it was at the start of the run.
    """

    def begin(self, step: int, batch: Sequence[TrainingGroup]) -> None:
        """Start the update that turns version `step - 1` into `step`; the batch is in the order of its positions."""

    def updating(self) -> bool:
        """Tell whether an update was begun and is not collected."""

    def collect(self) -> Update | None:
        """Return the update begun last, once it is done. After RolloutsLostError the same update may begin again."""

    def leaving(self) -> bool:
        """Tell whether a machine of the learner was told to leave, so that its work should be saved soon."""

    def save(self, folder: "RunFolder", state: DriverState) -> None:
        """Write the checkpoint of a step, whole or not at all, with the versions that its begun batches need.

        Raises TrainingError where the learner is in the midst of an update.
        """

    def restore(self, folder: "RunFolder", step: int) -> DriverState:
        """Continue from the checkpoint of a step."""

    def recover(self, serve: Callable[[], None]) -> None:
        """Start anew after LearnerLostError; `serve` is called meanwhile, again and again, and may raise."""


class Stages(Protocol):
    """The three stages of a run."""

    @property
    def samplers(self) -> Samplers: ...

    @property
    def scorers(self) -> Scorers: ...

    @property
    def learner(self) -> LearnerGroup: ...

    def wait(self, timeout: float) -> None:
        """Return once anything that was submitted or begun has finished, or after `timeout` seconds.

        Raises LearnerLostError.
        """

    def publish(self, *, oldest: int, averaged: bool = False) -> Published:
        """Make the learner's weights, or their EMA, loadable by the samplers: learner -> snapshot -> samplers.

        Versions before `oldest` are not asked for any more. Raises LearnerLostError.
        """

    def publish_lost(self, version: int, averaged: bool) -> Published:
        """Make weights loadable again that were published, and are gone.

        Raises LearnerLostError, also where the learner holds others by now: the run goes back to a checkpoint.
        """

    def republish(self, folder: "RunFolder", step: int, version: int) -> Published:
        """Make an older version loadable again, which the checkpoint of a step holds. Raises LearnerLostError."""

    def rollout_budget(self) -> float:
        """Return the bytes that all groups sampled and not yet learned may take together."""

    def fetch(self, handle: Handle) -> np.ndarray:
        """Return the images behind a handle, (N, H, W, 3) uint8. Raises RolloutsLostError."""

    def resize(self, *, samplers: int | None = None, scorers: int | None = None) -> None:
        """Have so many workers from now on; those that leave finish what they hold. Raises ClusterError."""

    def pool_status(self) -> Mapping[str, PoolStatus]:
        """Return the status of the pools, `samplers` and `scorers`."""

    def inject_fault(self, fault: Fault) -> None:
        """Do harm to the run's own workers, as a test or an operator asked. Raises ClusterError in one process."""

    def exchange(self, status: RunStatus) -> list[Request]:
        """Tell how the run is; return what was asked of it since the last call."""

    def end(self, status: RunStatus) -> None:
        """Tell how the run has ended; whoever waits for that hears it before this returns."""

    def faults(self) -> list[str]:
        """Return what failed and was recovered since the last call, a line each."""

    def notes(self) -> list[Note]:
        """Return what is worth a line and is no fault, since the last call: hedges, and workers in place of others."""

    def close(self) -> None:
        """End every worker; safe to call twice."""
