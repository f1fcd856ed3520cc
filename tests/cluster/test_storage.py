"""A run in storage whose learner has a disk of its own: what one writes reaches the other through storage alone."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import ray

from pcpo_ray.cluster.connect import connect
from pcpo_ray.runs import checkpoints
from pcpo_ray.runs.storage import Storage
from pcpo_ray.runs.stored import StoredFolder
from pcpo_ray.runs.urls import child
from tests.support import small
from tests.support.running import go, parameters, same

pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.timeout(600), pytest.mark.usefixtures("cluster")]


def theirs(home, cluster_cache):
    """Where the workers have their copy of a run."""
    return cluster_cache / "runs" / home.local.name


@pytest.mark.parametrize("stored", ["s3"], indirect=True)
def test_a_learner_with_its_own_disk_is_restored_from_storage_to_the_bit(small_sd, stored, tmp_path, cluster_cache):
    home = StoredFolder.at(child(stored, "apart"))
    there = theirs(home, cluster_cache)
    assert home.local != there
    run = small.run(small_sd, steps=4, workers__silence_timeout=8)
    stages = connect(run)
    begin, begun, held = stages.learner.begin, [], []

    def beginning(step, batch):
        begun.append(step)
        begin(step, batch)
        if len(begun) == 3:
            held.extend(folder.name for folder in checkpoints.all_checkpoints(there))
            pid, _ = ray.get(stages.learner.actors[0].alive.remote(0.0), timeout=60)
            os.kill(pid, signal.SIGKILL)
            shutil.rmtree(there)  # its machine is lost as well

    stages.learner.begin = beginning
    try:
        recorder = go(run, home, stages=stages)
    finally:
        stages.close()
    assert begun == [1, 2, 3, 3, 4] and held == ["step-000002"]
    assert not (home.local / "checkpoints").exists()
    assert "a new learner goes on after step 2" in (home.local / "events.jsonl").read_text()
    steps = {name.split("/")[1] for name in Storage(home.url).names("checkpoints")}
    assert steps == {"step-000002", "step-000003", "step-000004"}
    go(run, tmp_path / "whole")
    with home.fetched(newest=True) as read:
        assert same(parameters(tmp_path / "whole", 4), parameters(read.local, 4))
    assert [row["step"] for row in recorder.metrics() if row["kind"] == "train"] == [1, 2, 3, 4]
    resumed = [json.loads(line) for line in Path(home.local / "events.jsonl").read_text().splitlines()]
    assert [event["step"] for event in resumed if event["kind"] == "resumed"] == [2]
