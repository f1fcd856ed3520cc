"""The trajectory: the bytes per sample that cross processes to the learner. Counted, not timed."""

import dataclasses
import math
import pickle
from collections.abc import Sequence

import torch

from pcpo_ray import config
from pcpo_ray.commands.bench import work
from pcpo_ray.commands.bench.rows import Goal, Row, Say
from pcpo_ray.data.tensors import device_here


def measured_on(run: config.Run) -> config.Run:
    return dataclasses.replace(
        run,
        rollout=dataclasses.replace(run.rollout, prompts=1),
        optimizer=dataclasses.replace(run.optimizer, minibatches=1),
    )


def measure(run: config.Run, repeats: int, say: Say) -> Sequence[Row]:
    """Count the bytes of one group as handed to the object store; every repeat would give the same."""
    (group,) = work.sampled(run, device_here())
    trajectory, images = group.trajectory, len(group.trajectory)
    crossing = len(pickle.dumps(group.packed, protocol=5)) / images
    dtype = torch.bfloat16 if run.optimizer.mixed_precision == "bf16" else getattr(torch, run.model.dtype)
    values = len(trajectory.steps) * math.prod(trajectory.latents.shape[2:])
    row = Row(
        name="trajectory",
        unit="bytes a sample",
        figures=(crossing,),
        limits=(float(values * dtype.itemsize),),
        limit="the predictions of the trained steps, in the dtype that the network computes in",
        goal=Goal(bound="at most", value=1.1),
        facts={
            "trained steps": len(trajectory.steps),
            "of it the texts' encodings": sum(row.nbytes for row in trajectory.conditioning.values()) / images,
            "also, to be scored, an image": group.images.nbytes / images,
        },
    )
    return [row]
