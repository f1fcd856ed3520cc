"""python -m tests.chaos.learner_node MODEL FOLDER lost|drained RANKS: the node of a run's learner goes; another comes.

Lost, with the weights that samplers are to load, the run goes on from the newest checkpoint. Announced as draining, as
a spot machine is before it goes, each step is saved, and none that was is learned again.
"""

import json
import os
import re
import sys
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from pcpo_ray.cluster.connect import connect
from tests.chaos.node import drain
from tests.support import small
from tests.support.on_ray import undisturbed
from tests.support.running import go, parameters, same

INLINE = 10_000
"""Bytes up to which an object does not lie in the store: full weights are larger."""

STEPS = {"lost": 12, "drained": 12}


def main(model: Path, folder: Path, how: str, count: int) -> None:
    os.environ |= {"RAY_max_direct_call_object_size": str(INLINE)}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    node = cluster.add_node(num_cpus=2, resources={"learn": 2})
    ray.init(address=cluster.address, log_to_driver=False)
    strategy = "ddp" if count == 1 else "fsdp2"
    run = small.run(
        model,
        name=f"learner-{how}",
        steps=STEPS[how],
        model__train="{kind: full}",
        sampling__steps=2,
        rollout__prompts=2,
        rollout__max_staleness=2,
        optimizer__learning_rate=1e-3,
        evaluation__every=100,
        checkpoints__every=100 if how == "drained" else 4,
        rewards=small.slow(0.1),
        workers__samplers__workers=2,
        workers__learner=f"{{ranks: {count}, strategy: {strategy}, timeout: 15, cpus: 0.1, resources: {{learn: 1}}}}",
    )
    stages, begun, told, replaced = connect(run), [], 0, False
    begin = stages.learner.begin

    def replace_node() -> None:
        nonlocal node, replaced
        gone, node, replaced = node, cluster.add_node(num_cpus=2, resources={"learn": 2}), True
        cluster.remove_node(gone, allow_graceful=False)

    def beginning(step, batch):
        nonlocal told
        begun.append(step)
        if how == "drained" and begun.count(4) == 1 and step == 4:
            drain(cluster, node.node_id)
            deadline = time.monotonic() + 120
            while not stages.learner.leaving():  # the notice is seen within seconds: no step counts them
                assert time.monotonic() < deadline, "the notice was not seen"
                stages.wait(1.0)
        told += stages.learner.leaving()
        if told == 3 and not replaced:  # two steps were learned since the notice was seen
            replace_node()
        begin(step, batch)
        if how == "lost" and step == 7 and not replaced:
            replace_node()

    stages.learner.begin = beginning  # type: ignore[method-assign]
    recorder = go(run, folder / "run", stages=stages)
    stages.close()
    events = [json.loads(line) for line in (recorder.folder / "events.jsonl").read_text().splitlines()]
    messages = " ".join(event["message"] for event in events if event["kind"] == "fault")
    undisturbed(run, folder / "whole")
    ray.shutdown()
    cluster.shutdown()
    (after,) = map(int, re.findall(r"a new learner goes on after step (\d+)", messages))
    twice = sorted({step for step in begun if begun.count(step) > 1})
    if how == "drained":
        assert after > 4 and twice in ([], [after + 1]), (begun, messages)
    else:
        assert after == 4 and twice[0] == 5, (begun, messages)
    assert same(*(parameters(folder / name, STEPS[how]) for name in ("whole", "run")))
    print(f"the node of {count} ranks {how}; {messages}; the same bits")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
