"""The workers: the processes of each role, and what Ray reserves for them."""

from collections.abc import Mapping
from dataclasses import field
from typing import Literal

from pcpo_ray.config.base import Count, NonNegative, NonNegativeInt, Seconds, config

ROLLOUT_STORE_FRACTION = 0.6
"""Fraction of the object stores that untrained rollouts may fill; weights and transfers need the rest."""


@config
class Role:
    """Worker processes of one role: how many, what Ray reserves for each, and the threads each computes with."""

    workers: NonNegativeInt = 1
    """The number of processes at first; 0 samplers are enough with `learner.samples`."""
    min: Count = 1
    """With `max`: the fewest processes that the run keeps."""
    max: Count | None = None
    """The most processes; the run then changes their number itself, so that nobody waits. null: it stays as it is."""
    cpus: NonNegative = 1.0
    """CPUs that Ray reserves for each process."""
    gpus: NonNegative = 0.0
    """GPUs that Ray reserves for each process; 0.5 shares one between two."""
    resources: Mapping[str, float] = field(default_factory=dict)
    """Custom resources of Ray's nodes that each process takes."""
    accelerator: str | None = None
    """The type of GPU that each process needs, as Ray names it (H100, A100-80G, ...); null: any."""
    threads: Count = 1
    """Threads that each process computes with."""

    def __post_init__(self) -> None:
        if self.max is None and self.min != 1:
            raise ValueError(f"min is {self.min} without max, and only a pool with both changes; give max too")
        if self.max is not None and not self.min <= self.workers <= self.max:
            raise ValueError(f"workers is {self.workers}; expected {self.min} (min) to {self.max} (max)")


@config
class LearnerRole:
    """The learner's `ranks`, processes in lock-step: what Ray reserves for each, and the threads it computes with.

    Each trains on its part of every mini-batch's (image, timestep) pairs.
    """

    ranks: Count = 1
    """The number of processes that train together."""
    strategy: Literal["ddp", "fsdp2"] = "ddp"
    """`ddp` gives each rank a copy of the network, `fsdp2` a part of every parameter.

    Parts take less memory and more time.
    """
    offload: bool = False
    """True, with `fsdp2`: the parts, their gradients and the optimizer's state lie in host memory; it steps on the CPU.

    For GPUs, on which it was not tried; on CPUs it changes nothing.
    """
    samples: bool = False
    """True: the ranks also make images while no update is under way, with the network that they hold.

    With `samplers.workers` 0 they make all of them (colocated), with more they help (hybrid). It changes no result.
    They compute with `samplers.threads` then. With `fsdp2` each rank holds the whole network while it makes images.
    """
    timeout: Seconds = 300.0
    """The longest that a call between ranks may take."""
    cpus: NonNegative = 1.0
    """CPUs that Ray reserves for each rank."""
    gpus: NonNegative = 0.0
    """GPUs that Ray reserves for each rank."""
    resources: Mapping[str, float] = field(default_factory=dict)
    """Custom resources of Ray's nodes that each rank takes."""
    accelerator: str | None = None
    """The type of GPU that each rank needs, as Ray names it (H100, A100-80G, ...); null: any."""
    threads: Count = 1
    """Threads that each rank computes with."""

    def __post_init__(self) -> None:
        if self.offload and (self.strategy != "fsdp2" or self.ranks < 2):
            raise ValueError(
                f"offload is true with strategy={self.strategy} and ranks={self.ranks}, and what it offloads are the "
                "parts of several ranks; set strategy=fsdp2 and ranks to at least 2, or leave it out"
            )


@config
class Workers:
    """All workers of a run, and how long they may take."""

    samplers: Role = field(default_factory=Role)
    """The processes that make images."""
    scorers: Role = field(default_factory=Role)
    """The processes that score images."""
    learner: LearnerRole = field(default_factory=LearnerRole)
    """The processes that train."""
    start_timeout: Seconds = 300.0
    """The longest that the learner and the first sampler and scorer may take to be ready.

    Whoever replaces one of them has as long, once it has a place in the cluster.
    """
    silence_timeout: Seconds = 60.0
    """The time without a sign of life after which a sampler, a scorer or the learner is replaced."""
    task_timeout: Seconds = 3600.0
    """The time in which nothing finishes after which the run is stopped; so it is where a new learner finds no place.

    Checkpoints may take longer, by their size.
    """
    park: bool = False
    """True: what a GPU needs in one phase of the work only lies in pinned host memory until that phase.

    Reward models and quality networks lie there until they score, the VAE until it decodes, the optimizer's state and
    the running mean until an optimizer step. It costs copies and changes no result. A process on a CPU has nothing to
    park, and the networks of your own reward classes stay where these put them. It was not tried on a GPU.
    """
    sync: Literal["pull", "broadcast"] = "pull"
    """The way of new weights to the samplers.

    With `pull` each fetches a version when a task names it. With `broadcast` (for full fine-tuning on GPUs) the learner
    sends them to all idle samplers; a sampler that was busy, or did not receive them within a minute and four seconds
    per gigabyte, pulls.
    """

    def __post_init__(self) -> None:
        if not self.scorers.workers:
            raise ValueError("scorers.workers is 0; expected at least 1")
        if not self.samplers.workers and not self.learner.samples:
            raise ValueError(
                "samplers.workers is 0, so nobody makes images; expected at least 1, or learner.samples=true, with "
                "which the learner's ranks make them"
            )

    @property
    def elastic(self) -> bool:
        """Tell whether the run may have other numbers of workers than it began with."""
        return self.samplers.max is not None or self.scorers.max is not None
