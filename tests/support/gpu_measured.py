"""What a role takes of a GPU, beside the plan: `python -m tests.support.gpu_measured CONFIG [OVERRIDES]` prints JSON.

Of a GPU that nothing else uses meanwhile: the allocator's peak, and what the process has there besides.
"""

import gc
import json
import sys

import torch

from pcpo_ray.commands.plan import roles
from pcpo_ray.config import files
from pcpo_ray.workers.packing import pack_trajectory
from tests.support import measured


def taken(work):
    """Bytes of the GPU at the peak, and of them those that tensors had, with what the work made."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    made = work()
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    beside = total - free - torch.cuda.memory_reserved()
    return {
        "process": torch.cuda.max_memory_reserved() + beside,
        "tensors": torch.cuda.max_memory_allocated(),
        "beside": beside,
    }, made


def main(path, overrides):
    run = files.load(path, overrides)
    found, gpu = {}, torch.device("cuda")
    found["sampler"], (sampler, (trajectory, images)) = taken(lambda: measured.sample(run, gpu))
    packed = pack_trajectory(sampler.policy, measured.task_of(run), trajectory)
    del sampler, trajectory, images
    found["learner"], made = taken(lambda: measured.learn(run, packed, gpu))
    del made
    for role in (roles.sampler, roles.learner):
        planned = role(run)
        tensors = sum(planned.held.values()) + max(planned.phases.values())
        found[planned.role]["planned"] = planned.total
        found[planned.role]["planned tensors"] = tensors
        found[planned.role]["planned by"] = {**planned.held, planned.busiest: max(planned.phases.values())}
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
