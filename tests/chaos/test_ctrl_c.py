"""A run on Ray is ended by Ctrl-C, which a terminal sends to every process that it started, and by the other signals.

`timeout`, Slurm and a terminal that is gone send theirs to the whole group of processes too.
"""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from pcpo_ray.config import files
from pcpo_ray.runs import checkpoints
from tests.support import small
from tests.support.part import MORE
from tests.support.processes import COLD, command, wait_for

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]


def descendants(pid):
    """The process and all that it and they have started."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True, check=True).stdout
    pairs = [tuple(map(int, line.split())) for line in listed.splitlines()[1:]]
    found = {pid}
    while more := {child for child, parent in pairs if parent in found} - found:
        found |= more
    return found


def running(pids):
    return {pid for pid in pids if Path(f"/proc/{pid}").exists()}


@pytest.mark.parametrize(
    ("send", "number"),
    [
        (os.killpg, signal.SIGINT),
        (os.kill, signal.SIGTERM),
        *(pytest.param(os.killpg, number, marks=MORE) for number in (signal.SIGTERM, signal.SIGHUP)),
        pytest.param(os.kill, signal.SIGUSR1, marks=MORE),
    ],
)
def test_it_leaves_a_checkpoint_and_no_process(small_sd, tmp_path, send, number):
    path, log, folder = tmp_path / "ended.yaml", tmp_path / "log", tmp_path / "ended"
    path.write_text(files.dump(small.run(small_sd, name="ended", steps=400, checkpoints__every=400)))
    with log.open("w") as out:
        job = subprocess.Popen(
            command("train", path, "--runs", tmp_path),
            stdout=out,
            stderr=subprocess.STDOUT,
            env=COLD,
            start_new_session=True,
        )
    started = {job.pid}
    try:
        wait_for(lambda: "step 2/400" in log.read_text(), job)
        started |= descendants(job.pid)
        assert len(started) > 6  # the driver, Ray's own, the workers
        send(job.pid, number)
        assert job.wait(timeout=90) == 130
        deadline = time.monotonic() + 30
        while running(started):
            assert time.monotonic() < deadline, running(started)
            time.sleep(0.1)
    finally:
        for pid in running(started):
            os.kill(pid, signal.SIGKILL)
    assert "Traceback" not in log.read_text() and "continue with: pcpo-ray train" in log.read_text()
    assert checkpoints.newest(folder, pytest.fail) is not None
