"""The three protocols that the loop is written against, and Stages, which holds one of each.

Two implementations: `pcpo_ray.local` in this process, `pcpo_ray.cluster` on Ray. Nothing here blocks but `wait`,
`publish`, `save`, `restore` and `fetch`, each of which has a deadline in every implementation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pcpo_ray.errors import ClusterError
from pcpo_ray.request import Fault, Request
from pcpo_ray.trajectory import Handle, Rollout, Scored, Task

if TYPE_CHECKING:
    from pcpo_ray.folder import RunFolder
    from pcpo_ray.micro_batches import Found

SHARE = 0.6
"""Of the cluster's object stores, for groups not yet learned; weights and what is on its way need the rest."""


class LearnerLostError(ClusterError):
    """The learner is gone, and with it what it learned since the newest checkpoint."""


class RolloutsLostError(ClusterError):
    """What samplers made is gone, as its node is: of a batch that was to be learned, the groups at the `places`."""

    def __init__(self, message: str, places: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.places = tuple(places)


@dataclass(frozen=True, kw_only=True)
class Weighted:
    """A rollout and its images' advantages: what the learner gets."""

    rollout: Rollout
    advantages: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Update:
    """What one batch did to the weights: `version` after it, the diagnostics (objective.py), seconds of work.

    `kl` is the mean divergence from the reference, None where objective.kl is 0. `gradient_norm` is the mean over the
    optimizer steps that were taken, NaN if all were `skipped`, as their gradients were not finite. `update_ratio` and
    `moved_fraction` say how far the weights moved (movement.py), `importance` how the importance weights of older
    groups spread (objective.py), None where there are none.
    `first_log_ratio` is the largest |log-ratio| of the first optimizer step's images: 0 if the weights sampled them.
    `micro_batch` is there where the learner has chosen it in this update (optimizer.micro_batch=auto).
    """

    version: int
    loss: float
    kl: float | None
    gradient_norm: float
    skipped: int
    update_ratio: float
    moved_fraction: float
    importance: Mapping[str, float] | None
    first_log_ratio: float
    diagnostics: Mapping[str, Any]
    seconds: float
    micro_batch: "Found | None" = None


@dataclass(frozen=True, kw_only=True)
class Published:
    """A version of the weights, or its running mean, that samplers can load: its checksum, size, seconds it took.

    `received` are the samplers that were sent it; all others pull it when a task names it.
    """

    version: int
    averaged: bool
    checksum: str
    bytes: int
    seconds: float
    received: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class State:
    """What the driver keeps in a checkpoint beside the learner's own state, to go on as if it had never been away.

    `micro_batch` is the learner's, if it chose it. `begun` are the batches that were begun with older weights and are
    not learned: (step, version) each. `largest` are the bytes of the largest group so far, and `max_staleness` what it
    was last set to: with both, as many batches are begun as would have been. `rows` are metrics that could not be
    recorded.
    """

    step: int
    histories: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    micro_batch: int | None = None
    begun: Sequence[Sequence[int]] = field(default_factory=list)
    largest: int = 0
    max_staleness: int | None = None
    rows: Sequence[Mapping[str, Any]] = field(default_factory=list)

    @property
    def older(self) -> list[int]:
        """The versions that the batches begun are sampled with."""
        return sorted({version for _, version in self.begun})


class Samplers(Protocol):
    """Consumes tasks; waits for the weights that a task names; unblocks the scorers."""

    def submit(self, task: Task) -> None:
        """Queue a task; its weights must have been published."""

    def collect(self) -> list[Rollout]:
        """The groups finished since the last call, in no particular order."""

    def cancel(self) -> None:
        """Forget every task: none of them will be collected."""


class Scorers(Protocol):
    """Consumes rollouts; unblocks the advantages."""

    def submit(self, rollout: Rollout) -> None:
        """Queue a rollout."""

    def collect(self) -> list[Scored]:
        """The groups scored since the last call, in no particular order."""

    def lost(self) -> list[Rollout]:
        """The rollouts whose images were gone when they were to be scored, since the last call."""

    def cancel(self) -> None:
        """Forget every rollout: none of them will be collected."""


class LearnerGroup(Protocol):
    """Consumes weighted rollouts; unblocks the samplers by publishing.

    Every method may raise LearnerLostError; after `recover` the group is as it was at the start of the run.
    """

    def begin(self, step: int, batch: Sequence[Weighted]) -> None:
        """Start the update that turns version `step - 1` into `step`; the batch is in the order of its positions."""

    def updating(self) -> bool:
        """Whether an update was begun and is not collected."""

    def collect(self) -> Update | None:
        """The update begun last, once it is done. Raises RolloutsLostError; the same update may then begin again."""

    def publish(self, *, oldest: int, averaged: bool = False) -> Published:
        """Make the current weights, or their running mean, loadable for samplers, under their version.

        Versions before `oldest` are not asked for any more.
        """

    def republish(self, folder: "RunFolder", step: int, version: int) -> Published:
        """Make an older version loadable again, which the checkpoint of a step holds."""

    def leaving(self) -> bool:
        """Whether a machine that it is on was told to leave, so that what it has learned should be saved soon."""

    def save(self, folder: "RunFolder", state: State) -> None:
        """Write the checkpoint of a step, whole or not at all, with the versions that its begun batches need.

        Raises TrainingError where the learner is in the midst of an update.
        """

    def restore(self, folder: "RunFolder", step: int) -> State:
        """Continue from the checkpoint of a step."""

    def recover(self) -> None:
        """Start anew after LearnerLostError."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """Of a pool: how many workers are wanted and how many are at work, who these are, and the losses by cause.

    `setbacks` are the tasks that were `lost` or `hedged`, by cause. Both count from the start.
    """

    wanted: int
    ready: int
    workers: tuple[str, ...] = ()
    losses: Mapping[str, int] = field(default_factory=dict)
    setbacks: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


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

    def room(self) -> float:
        """Bytes that groups sampled and not yet learned may take, all together."""

    def fetch(self, handle: Handle) -> np.ndarray:
        """The images behind a handle, (N, H, W, 3) uint8. Raises RolloutsLostError."""

    def resize(self, *, samplers: int | None = None, scorers: int | None = None) -> None:
        """Have so many workers from now on; those that leave finish what they hold. Raises ClusterError."""

    def sizes(self) -> Mapping[str, Size]:
        """Of samplers and scorers."""

    def disturb(self, fault: Fault) -> None:
        """Do that to the run's own workers. Raises ClusterError where there are none to lose."""

    def exchange(self, status: Mapping[str, Any]) -> list[Request]:
        """Say how the run is; what was asked of it since the last call."""

    def end(self, status: Mapping[str, Any]) -> None:
        """Say how the run has ended; whoever is waiting for that hears it before this returns."""

    def faults(self) -> list[str]:
        """What failed and was mended since the last call, a line each."""

    def close(self) -> None:
        """End every worker; safe to call twice."""
