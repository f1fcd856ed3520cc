"""Processes of their own for ranks, forks of one that has imported torch and diffusers already."""

import multiprocessing

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "diffusers.pipelines.flux.pipeline_flux",
        "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
        "pcpo_ray.workers.learner.learner",
        "torch.distributed.fsdp",
    ]
)


def answers_of(work, own, *given, seconds):
    """What each process puts into the queue that `work` gets last, sorted; and how each ended.

    `own` has the first arguments of each process; `given` are those of all.
    """
    queue = FORKS.Queue()
    processes = [FORKS.Process(target=work, args=(*first, *given, queue)) for first in own]
    for process in processes:
        process.start()
    try:
        found = sorted(queue.get(timeout=seconds) for _ in processes)
        for process in processes:
            process.join(60)
        return found, [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()
