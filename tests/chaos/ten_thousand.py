"""python -m tests.chaos.ten_thousand: 10,000 tasks, 32 workers, a fault in a hundred; none is lost or doubled."""

import resource
import time
from collections import Counter

import ray

from pcpo_ray.cluster.pool import WorkerPool
from tests.cluster.sleeper import launch

TASKS, WORKERS = 10_000, 32


def main() -> None:
    ray.init(address="local", num_cpus=WORKERS, include_dashboard=False, log_to_driver=False)
    attempts: Counter[int] = Counter()

    def send(actor, item):
        attempts[item] += 1
        fate = "" if attempts[item] > 1 or item % 100 else ("die", "fail")[item // 100 % 2]
        return actor.work.remote(item, 0.0, fate), lambda value: value

    pool: WorkerPool[int, int] = WorkerPool("sleeper", launch, send, workers=WORKERS, silence=120.0)
    while pool.size().ready < WORKERS:
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
    print(f"{TASKS / seconds:.0f} tasks/s with {faults} lines of faults; the driver grew by {grown:.0f} MB")


if __name__ == "__main__":
    main()
