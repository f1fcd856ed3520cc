"""The data between the loop and the learner: training groups, updates, published weights and states."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pcpo_ray.data.types import Rollout


@dataclass(frozen=True, kw_only=True)
class TrainingGroup:
    """A rollout and the advantages of its images, as the learner gets them."""

    rollout: Rollout
    advantages: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Update:
    """The effect of one batch on the weights: the `version` after it, diagnostics (objective.py), seconds of work.

    `kl` is the mean divergence from the reference; None if objective.kl is 0. `learning_rate` is that of all its
    optimizer steps. `gradient_norm` is the mean over the
    optimizer steps that were taken. Steps are `skipped` if their gradients are not finite; NaN means that all were.
    `update_ratio` and `moved_fraction` say how far the weights moved (movement.py). `importance` summarises the
    importance weights of older groups (objective.py); None if there are none. `mismatch` is that of sampler and learner
    (mismatch.py); None if it was not measured. `first_log_ratio` is the largest
    |log-ratio| of the first optimizer step's images: 0 if they were sampled with the same weights. `micro_batch` is
    set if the learner chose it in this update (optimizer.micro_batch=auto).
    """

    version: int
    loss: float
    kl: float | None
    learning_rate: float
    gradient_norm: float
    skipped: int
    update_ratio: float
    moved_fraction: float
    importance: Mapping[str, float] | None
    first_log_ratio: float
    diagnostics: Mapping[str, Any]
    seconds: float
    micro_batch: "MicroBatchChoice | None" = None
    mismatch: Mapping[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Published:
    """A version of the weights, or its EMA, that samplers can load: its checksum, its size, and the seconds it took.

    `received` are the samplers that it was sent to; all others pull it when a task names it.
    """

    version: int
    averaged: bool
    checksum: str
    bytes: int
    seconds: float
    received: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DriverState:
    """The driver's part of a checkpoint, beside the learner's own state: a resumed run goes on as if never interrupted.

    `micro_batch` is the number that the learner chose, if it did. `begun` are the batches that were begun with older
    weights and not yet trained on, as (step, version). `largest` is the size of the largest group so far in bytes, and
    `max_staleness` its last setting: with both, as many batches are begun as without the interruption. `rows` are
    metrics that could not be recorded.
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
        """The versions with which the batches in `begun` are sampled."""
        return sorted({version for _, version in self.begun})


@dataclass(frozen=True, kw_only=True)
class MicroBatchChoice:
    """The chosen number of pairs in a micro-batch, and the seconds a pair of each size tried; None if it failed."""

    size: int
    seconds: Mapping[int, float | None]

    @classmethod
    def of(cls, sizes: Sequence[int], taken: Sequence[float]) -> "MicroBatchChoice":
        """Choose the fastest size, from the seconds that `measure` found on all ranks together."""
        seconds = {size: value if math.isfinite(value) else None for size, value in zip(sizes, taken, strict=True)}
        return cls(size=min(zip(taken, sizes, strict=True))[1], seconds=seconds)
