"""A cluster whose head hangs or is killed: the run on it ends by name, and says what is saved.

Left to Ray, the process would end without a word where the head is killed, and never where it hangs.
"""

import os
import signal
import subprocess

import psutil
import pytest

from pcpo_ray.config import files
from pcpo_ray.runs import checkpoints, look, names
from tests.chaos.nodes import Nodes
from tests.support import small
from tests.support.on_ray import ranks
from tests.support.part import MORE
from tests.support.processes import ENVIRONMENT, command, wait_for

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]


def a_run(model, folder, **changes):
    """The file of a run that lasts, and where it is kept."""
    path = folder / "headless.yaml"
    run = small.run(model, name="headless", steps=2000, rewards=small.slow(0.2), workers__start_timeout=600, **changes)
    path.write_text(files.dump(run))
    return path, folder / "headless"


def check_end(status, said, folder, seconds):
    """It has ended by name, and says what is saved and how to go on from there."""
    named = f"the head of the Ray cluster did not answer for {seconds}"
    assert status == 1 and f"failed: {named}" in said, said
    step = names.step_of(checkpoints.newest(folder, pytest.fail).name)
    assert f"step {step} is saved; once that is fixed, continue with: " in said, said
    found = look.look(str(folder))
    assert found and found["state"] == "failed" and named in found["error"]


@MORE
def test_a_run_whose_head_hangs_ends_by_name(small_sd, tmp_path):
    nodes = Nodes()
    nodes.environment["RAY_gcs_rpc_server_reconnect_timeout_s"] = "25"
    path, folder = a_run(small_sd, tmp_path)
    with nodes:
        nodes.environment["RAY_ADDRESS"] = nodes.address
        job = nodes.start("train", path, "--runs", tmp_path)
        wait_for(lambda: checkpoints.folder_for(folder, 2).exists(), job, limit=600)
        (head,) = [pid for pid, words in nodes.processes().items() if "gcs/gcs_server" in words]
        os.kill(head, signal.SIGSTOP)
        try:
            said, _ = job.communicate(timeout=180)
        finally:
            os.kill(head, signal.SIGCONT)
            job.kill()
    check_end(job.returncode, said, folder, 1)


@pytest.mark.parametrize("count", [pytest.param(1, marks=MORE), 2])
def test_a_run_whose_head_is_killed_ends_by_name(small_sd, tmp_path, count):
    path, folder = a_run(small_sd, tmp_path, workers__learner=ranks(count, "ddp"))
    log = tmp_path / "log"
    environment = {**ENVIRONMENT, "RAY_gcs_rpc_server_reconnect_timeout_s": "50"}
    with log.open("w") as out:
        words = command("train", path, "--runs", tmp_path)
        job = subprocess.Popen(words, stdout=out, stderr=subprocess.STDOUT, env=environment, cwd=tmp_path)
    try:
        wait_for(lambda: checkpoints.folder_for(folder, 2).exists(), job, limit=600)
        started = psutil.Process(job.pid).children(recursive=True)
        (head,) = [one for one in started if one.name() == "gcs_server"]
        head.kill()
        status = job.wait(timeout=180)
    finally:
        job.kill()
    check_end(status, log.read_text(), folder, 3)
