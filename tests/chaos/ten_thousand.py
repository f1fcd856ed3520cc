"""python -m tests.chaos.ten_thousand: 10,000 tasks, 32 workers, a fault in a hundred; none is lost or doubled.

First without Ray, on a simulated clock, to count decisions a second, then through Ray.
"""

import resource
import time
from collections import Counter

import ray

from pcpo_ray.cluster.pool import WorkerPool
from tests.support.simulated import Workers
from tests.support.sleeper import launch

TASKS, WORKERS = 10_000, 32


def decisions() -> float:
    """Decisions a second of the pool alone, its simulated workers' time included."""
    simulated = Workers(WORKERS, die=0.005, fail=0.005)
    started = time.perf_counter()
    for item in range(TASKS):
        simulated.submit(item)
    simulated.run()
    seconds = time.perf_counter() - started
    assert Counter(simulated.finished) == Counter(range(TASKS)) and simulated.faults >= TASKS // 200
    return simulated.decisions / seconds


def main() -> None:
    alone = decisions()
    ray.init(address="local", num_cpus=WORKERS, include_dashboard=False, log_to_driver=False)
    attempts: Counter[int] = Counter()

    def send(actor, item):
        attempts[item] += 1
        fate = "" if attempts[item] > 1 or item % 100 else ("die", "fail")[item // 100 % 2]
        return actor.work.remote(item, 0.0, fate), lambda value: value

    pool: WorkerPool[int, int] = WorkerPool("sleeper", launch, send, workers=WORKERS, silence=120.0)
    while pool.status().ready < WORKERS:
        ray.wait(pool.references(), timeout=1.0)
        pool.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started, results = time.monotonic(), []
    for item in range(TASKS):
        pool.submit(item)
    while len(results) < TASKS:
        ray.wait(pool.references(), timeout=1.0)
        results += pool.collect()
    seconds = time.monotonic() - started
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    faults = len(pool.faults())
    pool.close()
    ray.shutdown()
    assert Counter(results) == Counter(range(TASKS)), "lost or doubled"
    assert faults >= TASKS // 100, f"only {faults} faults"
    assert grown < 50, f"the driver grew by {grown:.0f} MB"
    rates = f"{alone:.0f} decisions/s without Ray; through it {TASKS / seconds:.0f} tasks/s"
    print(f"{rates}, {faults} lines of faults; the driver grew by {grown:.0f} MB")


if __name__ == "__main__":
    main()
