"""Runs on Ray, and waiting for their workers."""

import time

from pcpo_ray.cluster.connect import connect
from tests.support.running import go


def await_samplers(stages, count):
    deadline = time.monotonic() + 120
    while stages.pool_status()["samplers"].ready < count:
        assert time.monotonic() < deadline, stages.pool_status()
        stages.samplers.collect()
        stages.wait(0.5)


def ranks(count, strategy, timeout=60, *, samples=False):
    more = ", samples: true" * samples
    return f"{{cpus: 0.1, ranks: {count}, strategy: {strategy}, timeout: {timeout}{more}}}"


def on_ray(run, folder, *, found=None, disturb=lambda stages: None):
    stages = connect(run)
    try:
        disturb(stages)
        return go(run, folder, stages=stages, found=found)
    finally:
        stages.close()


def undisturbed(run, folder):
    """The run without a fault: in this process, or where the order of sums counts on as many ranks."""
    return go(run, folder) if run.workers.learner.ranks == 1 else on_ray(run, folder)
