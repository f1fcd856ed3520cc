"""The workers: the processes of each role, and what Ray reserves for them."""

from collections.abc import Mapping
from dataclasses import field
from typing import Literal

from pcpo_ray.config.base import Count, NonNegative, Positive, config

ROLLOUT_STORE_FRACTION = 0.6
"""Fraction of the object stores that untrained rollouts may fill; weights and transfers need the rest."""


@config
class Role:
    """Worker processes of one role: how many at first, what Ray reserves for each, and the threads each computes with.

    With `max` the run itself keeps between `min` and `max` of them, so many that nobody waits. `resources` are custom
    resources of Ray's nodes, `accelerator` the type of GPU (H100, A100-80G, ...).
    """

    workers: Count = 1
    min: Count = 1
    max: Count | None = None
    cpus: NonNegative = 1.0
    gpus: NonNegative = 0.0
    resources: Mapping[str, float] = field(default_factory=dict)
    accelerator: str | None = None
    threads: Count = 1

    def __post_init__(self) -> None:
        if self.max is None and self.min != 1:
            raise ValueError(f"min is {self.min} without max, and only a pool with both changes; give max too")
        if self.max is not None and not self.min <= self.workers <= self.max:
            raise ValueError(f"workers is {self.workers}; expected {self.min} (min) to {self.max} (max)")


@config
class LearnerRole:
    """The learner's `ranks`, processes in lock-step: what Ray reserves for each, and the threads it computes with.

    Each trains on its part of every mini-batch's (image, timestep) pairs. It holds a copy of the network (`ddp`) or a
    part of every parameter (`fsdp2`), which takes less memory and more time. No call between ranks may take longer than
    `timeout` seconds.
    """

    ranks: Count = 1
    strategy: Literal["ddp", "fsdp2"] = "ddp"
    timeout: Positive = 300.0
    cpus: NonNegative = 1.0
    gpus: NonNegative = 0.0
    resources: Mapping[str, float] = field(default_factory=dict)
    accelerator: str | None = None
    threads: Count = 1


@config
class Workers:
    """All workers of a run, and how long they may take.

    `start_timeout` is how many seconds the learner and the first sampler and scorer may take to be ready. After
    `task_timeout` seconds in which nothing finishes, the run is stopped. A sampler or scorer without a sign of life for
    `silence_timeout` seconds is replaced.

    `sync` is how new weights reach the samplers. With `pull` each fetches a version when a task names it. With
    `broadcast` (for full fine-tuning on GPUs) the learner sends them to all idle samplers; a sampler that was busy, or
    did not receive them within 60 seconds, pulls.
    """

    samplers: Role = field(default_factory=Role)
    scorers: Role = field(default_factory=Role)
    learner: LearnerRole = field(default_factory=LearnerRole)
    start_timeout: Positive = 300.0
    silence_timeout: Positive = 60.0
    task_timeout: Positive = 3600.0
    sync: Literal["pull", "broadcast"] = "pull"

    @property
    def elastic(self) -> bool:
        """Tell whether the run may have other numbers of workers than it began with."""
        return self.samplers.max is not None or self.scorers.max is not None
