"""python -m tests.chaos.node MODEL FOLDER lost|drained|twice: the node of one of a run's two samplers goes.

Lost, the other sampler takes over within RECOVERY seconds at Ray's default health checks; announced as draining, as a
spot machine is before it goes, its sampler finishes what it holds. Another node comes, and the pool is whole again.
Twice: a node goes when a batch is about to be learned, with trajectories of it, and the other one when what was sampled
again is: what is gone is sampled again each time.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from pcpo_ray.cluster.connect import connect
from tests.support import small
from tests.support.running import go, parameters, same

RECOVERY = 20.0
"""Seconds in which a lost node's tasks must be at work elsewhere."""

STEPS = 24
SAID = {"lost": "is gone", "drained": "is leaving", "twice": "are gone; they are sampled again"}


def drain(cluster: Cluster, node: str) -> None:
    words = ["--node-id", node, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot notice"]
    command = [str(Path(sys.executable).with_name("ray")), "drain-node", "--address", cluster.address, *words]
    subprocess.run([*command, "--deadline-remaining-seconds", "120"], check=True, capture_output=True, timeout=60)


def main(model: Path, folder: Path, how: str) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "resources": {"fixed": 2}})
    nodes = [cluster.add_node(num_cpus=2, resources={"spot": 1}) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False)
    spot, fixed = "resources: {spot: 1}, cpus: 0.1", "resources: {fixed: 1}, cpus: 0.1"
    settings = {
        "name": "spot",
        "steps": STEPS,
        "checkpoints__every": 8,
        "evaluation__every": 12,
        "workers__samplers": f"{{workers: 2, {spot}}}",
        "workers__scorers": f"{{workers: 1, {fixed}}}",
        "workers__learner": f"{{{fixed}}}",
    }
    if how == "twice":  # trajectories of more than 100 kB, as smaller ones lie in the driver's own memory
        settings |= {"steps": 6, "checkpoints__every": 6, "rollout__images": 48, "sampling__steps": 14}
    # the scorer takes 1.5 s a step at least, so that the run still goes on when the loss is noticed
    run = small.run(model, **settings, rewards=small.slow(0.5))
    stages = connect(run)
    deadline = time.monotonic() + 120
    while stages.pool_status()["samplers"].ready < 2:
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
            if how == "lost":
                cluster.remove_node(nodes[0], allow_graceful=False)
            else:
                drain(cluster, nodes[0].node_id)
            cluster.add_node(num_cpus=2, resources={"spot": 1})

    begin, begun = stages.learner.begin, 0

    def beginning(step, batch):
        nonlocal begun, lost
        if step == 3 and begun < 2:
            lost = lost or time.time()
            cluster.remove_node(nodes[begun], allow_graceful=False)
            cluster.add_node(num_cpus=2, resources={"spot": 1})
            begun += 1
        begin(step, batch)

    if how == "twice":
        stages.learner.begin = beginning  # type: ignore[method-assign]
    else:
        stages.samplers.submit = submitting  # type: ignore[method-assign]
    recorder = go(run, folder / "spot", stages=stages)
    events = [json.loads(line) for line in (recorder.folder / "events.jsonl").read_text().splitlines()]
    messages = [(event["message"], event["time"] - lost) for event in events if event["kind"] == "fault"]
    noticed = [seconds for message, seconds in messages if SAID[how] in message]
    ready = stages.pool_status()["samplers"].ready
    stages.close()
    ray.shutdown()
    cluster.shutdown()
    if how == "twice":
        assert lost and len(noticed) == 2, f"trajectories were to go twice; noticed was {messages}"
    else:
        assert lost and len(noticed) == 1, f"one sampler was to go; noticed was {messages}"
        assert noticed[0] < RECOVERY, f"noticed after {noticed[0]} s"
    if how == "drained":
        assert not any("lost a task" in message or "is gone" in message for message, _ in messages), messages
    assert ready == 2, f"{ready} samplers at the end; the new node was to have the second"
    go(small.run(model, **settings, rewards=small.slow(0.0)), folder / "whole")
    assert same(*(parameters(folder / name, settings["steps"]) for name in ("whole", "spot")))
    print(f"a node {how}, noticed after {noticed[0]:.1f} s; the same bits")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
