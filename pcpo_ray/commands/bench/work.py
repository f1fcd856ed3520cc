"""The groups of a run's first batches, which benchmarks measure."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from pcpo_ray import config
from pcpo_ray.data import prompts
from pcpo_ray.data.tasks import training_tasks
from pcpo_ray.data.types import Task, Trajectory
from pcpo_ray.workers.packing import PackedTrajectory, pack_trajectory
from pcpo_ray.workers.sampler import Sampler


def tasks(run: config.Run, step: int, version: int) -> list[Task]:
    """Make the tasks of a batch, as the loop does."""
    return training_tasks(run, prompts.sources(run)[0], step, version)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampled:
    """A group's trajectory and images on the CPU, and the packed trajectory."""

    trajectory: Trajectory
    images: np.ndarray
    packed: PackedTrajectory


def sampled(run: config.Run, device: torch.device) -> list[Sampled]:
    """Sample the groups of the first batch."""
    torch.set_num_threads(run.workers.samplers.threads)
    sampler = Sampler(run, device)
    found = []
    for task in tasks(run, 1, 0):
        sampler.prepare(task)
        trajectory, images = sampler.sample(task)
        assert trajectory is not None
        crossing = pack_trajectory(sampler.policy, task, trajectory)
        found.append(Sampled(trajectory=trajectory.to(torch.device("cpu")), images=images, packed=crossing))
    return found


def sizes(most: int) -> Sequence[int]:
    """List batch sizes to try: powers of two, and all at once."""
    return sorted({most, *(2**power for power in range(1, most.bit_length()) if 2**power < most)})


def counted(role: config.Role, workers: int) -> config.Role:
    """Fix the role's number of workers."""
    return dataclasses.replace(role, workers=workers, min=1, max=None)
