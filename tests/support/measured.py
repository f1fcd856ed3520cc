"""What a role's process really takes: `python -m tests.support.measured CONFIG ...` prints bytes by role, as JSON.

Growth of the resident memory from a process that has loaded and used the libraries, with the same kind of model, to the
highest that it comes to while the role works as its actor does: with what that holds, on the CPU.
"""

import ctypes
import dataclasses
import gc
import json
import sys
from pathlib import Path

import numpy as np
import psutil
import torch

from pcpo_ray.config import files
from pcpo_ray.data.types import Prompt, Task
from pcpo_ray.workers.learner.learner import Learner
from pcpo_ray.workers.packing import pack_trajectory
from pcpo_ray.workers.sampler import Sampler
from pcpo_ray.workers.scorer import Scorer

CPU = torch.device("cpu")


def resident() -> int:
    """Bytes now, what was given back to the allocator given back to the machine."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return int(psutil.Process().memory_info().rss)


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def task_of(run, position=0):
    prompt = Prompt(index=0, text="a red circle")
    return Task(step=1, position=position, prompt=prompt, images=run.rollout.images, version=0, purpose="train")


def sample(run, device=CPU):
    sampler = Sampler(run, device)
    return sampler, sampler.sample(task_of(run))


def score(run):
    scorer = Scorer(run, CPU)
    images = np.zeros((run.rollout.images, run.sampling.height or 64, run.sampling.width or 64, 3), np.uint8)
    return scorer, images, scorer.score(task_of(run), images)


def learn(run, packed, device=CPU):
    """Two updates; the second has all that AdamW keeps."""
    learner = Learner(run, device)
    batch = [(0, packed, np.linspace(-1, 1, run.rollout.images).tolist())] * run.rollout.prompts
    sent = None
    for step in (1, 2):
        learner.update(step, batch)
        sent = learner.weights()
    return learner, batch, sent


def grown(work):
    """By how many bytes the process had grown while it worked, at most, and what it made."""
    before = resident()
    forget_peak()
    made = work()
    return peak() - before, made


def main(path: str) -> None:
    run = files.load(path)
    rollout = dataclasses.replace(run.rollout, images=2, prompts=1)
    optimizer = dataclasses.replace(run.optimizer, minibatches=1)
    little = dataclasses.replace(run, rollout=rollout, optimizer=optimizer)
    sampler, (trajectory, _) = sample(little)
    learn(little, pack_trajectory(sampler.policy, task_of(little), trajectory))
    score(little)
    found = {"scorer": grown(lambda: score(run))[0]}
    found["sampler"], (sampler, (trajectory, pictures)) = grown(lambda: sample(run))
    packed = pack_trajectory(sampler.policy, task_of(run), trajectory)
    del sampler, trajectory, pictures
    found["learner"] = grown(lambda: learn(run, packed))[0]
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for path in sys.argv[1:]:
        main(path)
