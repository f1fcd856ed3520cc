"""python -m tests.chaos.node_loss MODEL FOLDER: a run loses the node of one of its two samplers; the other takes over.

Health checks are Ray's defaults. Afterwards another node comes, and the pool is whole again.
"""

import json
import sys
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from pcpo_ray.cluster import connect
from tests import small
from tests.test_train import go, parameters, same

RECOVERY = 20.0
"""Seconds in which a lost node's tasks must be at work elsewhere."""

STEPS = 60


def main(model: Path, folder: Path) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "resources": {"fixed": 2}})
    nodes = [cluster.add_node(num_cpus=2, resources={"spot": 1}) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False)
    spot, fixed = "resources: {spot: 1}, cpus: 0.1", "resources: {fixed: 1}, cpus: 0.1"
    settings = {
        "name": "spot",
        "steps": STEPS,
        "checkpoints__every": 20,
        "evaluation__every": 30,
        "workers__samplers": f"{{workers: 2, {spot}}}",
        "workers__scorers": f"{{workers: 1, {fixed}}}",
        "workers__learner": f"{{{fixed}}}",
    }
    # the scorer takes 0.6 s a step at least, so that the run still goes on when the loss is noticed
    run = small.run(model, **settings, rewards=small.slow(0.2))
    stages = connect(run)
    deadline = time.monotonic() + 120
    while stages.sizes()["samplers"].ready < 2:
        assert time.monotonic() < deadline, "two samplers were not ready in 120 s"
        stages.samplers.collect()
        stages.wait(0.5)
    submit, count, lost = stages.samplers.submit, 0, 0.0

    def submitting(task):
        nonlocal count, lost
        submit(task)
        count += 1
        if count == 9:
            lost = time.time()
            cluster.remove_node(nodes[0], allow_graceful=False)
            cluster.add_node(num_cpus=2, resources={"spot": 1})

    stages.samplers.submit = submitting  # type: ignore[method-assign]
    recorder = go(run, folder / "spot", stages=stages)
    events = [json.loads(line) for line in (recorder.folder / "events.jsonl").read_text().splitlines()]
    noticed = [event["time"] - lost for event in events if "is gone" in event.get("message", "")]
    ready = stages.sizes()["samplers"].ready
    stages.close()
    ray.shutdown()
    cluster.shutdown()
    assert lost and noticed, "no sampler was lost"
    assert max(noticed) < RECOVERY, f"the loss was noticed after {noticed} s"
    assert ready == 2, f"{ready} samplers at the end; the new node was to have the second"
    go(small.run(model, **settings, rewards=small.slow(0.0)), folder / "whole")
    assert same(parameters(folder / "whole", STEPS), parameters(folder / "spot", STEPS))
    print(f"a node lost, its sampler given up after {noticed} s; the same bits")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
