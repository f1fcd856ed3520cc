"""python -m tests.chaos.node_loss MODEL FOLDER: a run whose samplers' node is lost; another takes its place."""

import sys
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from pcpo_ray.cluster import connect
from tests import small
from tests.test_train import go, parameters, same


def main(model: Path, folder: Path) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "resources": {"fixed": 2}})
    first = cluster.add_node(num_cpus=2, resources={"spot": 2})
    ray.init(address=cluster.address, log_to_driver=False)
    spot, fixed = "resources: {spot: 1}, cpus: 0.1", "resources: {fixed: 1}, cpus: 0.1"
    run = small.run(
        model,
        name="spot",
        steps=5,
        workers__samplers=f"{{workers: 2, {spot}}}",
        workers__scorers=f"{{workers: 1, {fixed}}}",
        workers__learner=f"{{{fixed}}}",
    )
    stages = connect(run)
    submit, count, lost = stages.samplers.submit, 0, 0.0

    def submitting(task):
        nonlocal count, lost
        submit(task)
        count += 1
        if count == 9:
            cluster.remove_node(first, allow_graceful=False)
            cluster.add_node(num_cpus=2, resources={"spot": 2})
            lost = time.monotonic()

    stages.samplers.submit = submitting  # type: ignore[method-assign]
    recorder = go(run, folder / "spot", stages=stages)
    gone = (recorder.folder / "events.jsonl").read_text().count("is gone")
    stages.close()
    ray.shutdown()
    cluster.shutdown()
    assert lost and gone >= 2, "no sampler was lost"
    go(run, folder / "whole")
    assert same(parameters(folder / "whole", 5), parameters(folder / "spot", 5))
    print(f"{gone} samplers lost with their node; the same bits; done {time.monotonic() - lost:.0f} s after")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
