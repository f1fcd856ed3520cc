"""The work that benchmarks measure: the groups of a run's first batches."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from pcpo_ray import config, prompts
from pcpo_ray.packed import Packed, pack
from pcpo_ray.sampler import Sampler
from pcpo_ray.trajectory import Task, Trajectory


def tasks(run: config.Run, step: int, version: int) -> list[Task]:
    """The groups of a batch, as the loop asks for them."""
    source, _ = prompts.sources(run)
    return [
        Task(step=step, position=n, prompt=prompt, images=run.rollout.images, version=version, purpose="train")
        for n, prompt in enumerate(source.batch(step, run.rollout.prompts))
    ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampled:
    """A group's trajectory and pictures, on the CPU, and the trajectory as it crosses processes."""

    trajectory: Trajectory
    pictures: np.ndarray
    packed: Packed


def sampled(run: config.Run, device: torch.device) -> list[Sampled]:
    """The groups of the first batch."""
    torch.set_num_threads(run.workers.samplers.threads)
    sampler = Sampler(run, device)
    found = []
    for task in tasks(run, 1, 0):
        sampler.prepare(task)
        trajectory, pictures = sampler.sample(task)
        assert trajectory is not None
        crossing = pack(sampler.policy, task, trajectory)
        found.append(Sampled(trajectory=trajectory.to(torch.device("cpu")), pictures=pictures, packed=crossing))
    return found


def sizes(most: int) -> Sequence[int]:
    """Batch sizes to try: powers of two, and all at once."""
    return sorted({most, *(2**power for power in range(1, most.bit_length()) if 2**power < most)})


def counted(role: config.Role, workers: int) -> config.Role:
    """The role with so many workers, for good."""
    return dataclasses.replace(role, workers=workers, min=1, max=None)
