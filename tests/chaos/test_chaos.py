"""Faults in clusters of their own, each seen to have happened; the final parameters are those of an undisturbed run."""

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import get_args

import pytest

from pcpo_ray.config import files
from pcpo_ray.data.requests import Fault
from pcpo_ray.runs import checkpoints, names
from tests.support import ROOT, small
from tests.support.part import MORE
from tests.support.processes import ENVIRONMENT, command, head_of, wait_for
from tests.support.running import go, parameters, same

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200)]


def started(run, folder):
    """The run as a user starts it, on a Ray of its own, and where it writes."""
    path = folder / f"{run.name}.yaml"
    path.write_text(files.dump(run))
    words = command("train", path, "--runs", folder)
    log = (folder / f"{run.name}.log").open("w")
    return subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, env=ENVIRONMENT, cwd=folder), words


def saved(folder):
    """The step of the newest checkpoint; 0 where there is none."""
    steps = [names.step_of(path.name) for path in checkpoints.all_checkpoints(folder)]
    return max((step for step in steps if step is not None), default=0)


def events(folder):
    path = folder / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@MORE
def test_twelve_faults_in_one_run_change_no_bit(small_sd, tmp_path):
    # the only scorer takes 0.5 s a step at least, so that the last fault finds the run going on
    settings = {"name": "disturbed", "steps": 160, "workers__samplers__workers": 2, "workers__silence_timeout": 10}
    run = small.run(small_sd, **settings, rewards=small.slow(0.17))
    job, _ = started(run, tmp_path)
    folder = tmp_path / "disturbed"
    # twelve in a random order, each kind at least once
    drawn = random.Random(0)
    kinds = [*get_args(Fault), *drawn.choices(get_args(Fault), k=12 - len(get_args(Fault)))]
    drawn.shuffle(kinds)
    try:
        for kind in kinds:
            before = saved(folder)  # a learner that is lost three times at one step ends the run
            wait_for(lambda before=before: saved(folder) > before, job, limit=600)
            done = subprocess.run(
                command("chaos", "disturbed", "--kill", kind, "--every", 1, "--count", 1, "--address", head_of(job)),
                capture_output=True,
                text=True,
                env=ENVIRONMENT,
                timeout=300,
            )
            assert done.returncode == 0, done.stdout + done.stderr
        assert job.wait(timeout=600) == 0, (tmp_path / "disturbed.log").read_text()
    finally:
        job.kill()
    asked = Counter(event["fault"] for event in events(folder) if event["kind"] == "asked")
    mended = " ".join(event["message"] for event in events(folder) if event["kind"] == "fault")
    assert asked == Counter(kinds)
    assert mended.count("sampler-") >= 3 and "scorer-" in mended and "a new learner" in mended
    go(small.run(small_sd, **settings, rewards=small.slow(0.0)), tmp_path / "whole")
    assert same(parameters(tmp_path / "whole", 160), parameters(folder, 160))


def test_a_driver_killed_on_ray_resumes_to_the_bit_and_leaves_no_worker(small_sd, tmp_path):
    run = small.run(small_sd, name="driverless", steps=5)
    job, words = started(run, tmp_path)
    folder = tmp_path / "driverless"
    wait_for(lambda: checkpoints.folder_for(folder, 2).exists(), job)
    children = subprocess.run(["pgrep", "-P", str(job.pid)], capture_output=True, text=True).stdout.split()
    assert children
    job.send_signal(signal.SIGKILL)
    job.wait(timeout=30)
    assert not checkpoints.folder_for(folder, 5).exists()
    deadline = time.monotonic() + 60
    while left := [pid for pid in children if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, f"still there: {left}"
        time.sleep(0.2)
    done = subprocess.run(
        [*words, "--resume"], capture_output=True, text=True, timeout=400, env=ENVIRONMENT, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    go(run, tmp_path / "whole")
    assert same(parameters(tmp_path / "whole", 5), parameters(folder, 5))


OF_A_LEARNER = [f"learner_node {how} {count}" for how in ("lost", "drained") for count in (1, 2)]


@pytest.mark.parametrize(
    "script",
    [
        *("node lost", "memory"),
        *(pytest.param(one, marks=MORE) for one in ("node drained", "node twice", "ten_thousand", *OF_A_LEARNER)),
    ],
)
def test_in_a_cluster_of_its_own(script, small_sd, tmp_path):
    name, *words = script.split()
    done = subprocess.run(
        [sys.executable, "-m", f"tests.chaos.{name}", str(small_sd), str(tmp_path), *words],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        cwd=ROOT,
        timeout=1000,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
