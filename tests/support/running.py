"""Whole runs in this process, and what they leave."""

import torch

from pcpo_ray.commands import opening, session
from pcpo_ray.data.updates import DriverState
from pcpo_ray.runs import checkpoints
from pcpo_ray.runs.folder import LocalFolder, RunFolder
from pcpo_ray.training import loop as loops
from pcpo_ray.training.recorder import Recorder
from tests.support.checkpointing import write_checkpoint


def go(run, folder, *, stages=None, found=None, say=lambda line: None):
    """Train, or resume if `found`, in a folder: a path, or a RunFolder."""
    home = folder if isinstance(folder, RunFolder) else LocalFolder(local=folder)
    if found is None:
        recorder, step = Recorder.create(home, run), None
    else:
        recorder, step = opening.resume(home, run, lambda line: None)
    stages = stages or session.stages(run, local=True, say=lambda line: None)
    prompts, held_out = session.sources(run)
    loop = loops.Loop(run, stages, recorder, prompts=prompts, held_out=held_out, say=say)
    if step is not None:
        loop.restore(step)
    loop.train()
    return recorder


def parameters(folder, step):
    return checkpoints.read(checkpoints.folder_for(folder, step)).parameters


def same(one, other):
    return one.keys() == other.keys() and all((one[name] == other[name]).all() for name in one)


def saved(folder, step):
    where = checkpoints.folder_for(folder, step)
    weights = {"w": torch.ones(4)}
    state = DriverState(step=step)
    write_checkpoint(
        where, version=step, state=state, parameters=weights, averaged={}, optimizer=weights, export=lambda folder: None
    )
    return where
