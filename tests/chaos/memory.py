"""python -m tests.chaos.memory MODEL FOLDER: the memory monitor kills a learner that grows, and another goes on."""

import json
import os
import sys
from pathlib import Path

import psutil

from tests.support import FAULTS, faults, small
from tests.support.running import go, parameters, same

SPARE = 4 * 2**30
"""Bytes that this machine may use beyond what it uses now; the learner takes ten GiB."""


def main(model: Path, folder: Path) -> None:
    memory = psutil.virtual_memory()
    most = (memory.total - memory.available + SPARE) / memory.total
    os.environ |= {"RAY_memory_usage_threshold": f"{most:.3f}", "RAY_memory_monitor_refresh_ms": "100"}
    import ray

    from pcpo_ray.cluster.connect import connect

    os.environ[FAULTS] = str(folder / "faults")
    faults.install(setattr)
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    run = small.run(model, name="memory", steps=4, checkpoints__every=1, rollout__prompts=2, evaluation__every=100)
    stages = connect(run)
    begin, grown = stages.learner.begin, []

    def beginning(step, batch):
        if step == 3 and not grown:
            grown.append(step)
            faults.plan("memory", "learner", "update", "grow")
        begin(step, batch)

    stages.learner.begin = beginning  # type: ignore[method-assign]
    recorder = go(run, folder / "memory", stages=stages)
    stages.close()
    ray.shutdown()
    events = [json.loads(line) for line in (recorder.folder / "events.jsonl").read_text().splitlines()]
    found = [event["message"] for event in events if event["kind"] == "fault"]
    assert any("a new learner goes on after step 2" in message for message in found), found
    go(run, folder / "whole")
    assert same(parameters(folder / "whole", 4), parameters(folder / "memory", 4))
    print("\n".join(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
