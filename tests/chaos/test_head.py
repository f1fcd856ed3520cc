"""A cluster whose head hangs or is killed: the run on it ends by name, and says what is saved.

Left to Ray, the process would end without a word where the head is killed, and never where it hangs.
"""

import contextlib
import os
import signal

import pytest

from pcpo_ray.config import files
from pcpo_ray.runs import checkpoints, look, names
from tests.chaos.nodes import Nodes
from tests.support import small
from tests.support.part import MORE
from tests.support.processes import wait_for

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(400)]


@MORE
@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_a_run_whose_head_is_gone_ends_by_name(small_sd, tmp_path, number):
    nodes = Nodes()
    nodes.environment["RAY_gcs_rpc_server_reconnect_timeout_s"] = "25"
    path = tmp_path / "headless.yaml"
    path.write_text(files.dump(small.run(small_sd, name="headless", steps=2000, rewards=small.slow(0.2))))
    with nodes:
        nodes.environment["RAY_ADDRESS"] = nodes.address
        job = nodes.start("train", path, "--runs", tmp_path)
        wait_for(lambda: checkpoints.folder_for(tmp_path / "headless", 2).exists(), job)
        (head,) = [pid for pid, words in nodes.processes().items() if "gcs/gcs_server" in words]
        os.kill(head, number)
        try:
            said, _ = job.communicate(timeout=180)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(head, signal.SIGCONT)
            job.kill()
    assert job.returncode == 1 and "failed: the head of the Ray cluster did not answer for 1" in said, said
    kept = checkpoints.newest(tmp_path / "headless", pytest.fail)
    assert kept and f"step {names.step_of(kept.name)} is saved; once that is mended, continue with: " in said, said
    found = look.look(str(tmp_path / "headless"))
    assert found and found["state"] == "failed" and "the head of the Ray cluster did not answer" in found["error"]
