"""What listens while a run with two ranks and a broadcast goes on is what the threat note names."""

import subprocess

import psutil
import pytest

from pcpo_ray.config import files
from tests.support import ROOT, small
from tests.support.processes import COLD, command, wait_for

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]

NOTE = (ROOT / "deploy" / "README.md").read_text(encoding="utf-8").partition("## Threat note")[2]
NAMED = {
    "gcs_server": "6379",
    "raylet": "ports of nodes and workers",
    "dashboard": "8265",
    "agent": "each node's agent",
    "driver": "ports of nodes and workers",
    "worker": "ports of nodes and workers",
    "learner": "TCPStore",
}
"""By the kind of process that listens, the note's words."""


def kind_of(process):
    """Of a process of a run, or of Ray."""
    words = " ".join(process.cmdline()).lower()
    if "pcpo_ray.commands.app" in words:
        return "driver"
    found = [kind for kind in ("gcs_server", "raylet/raylet", "dashboard/dashboard.py", "agent") if kind in words[:400]]
    return found[0].partition("/")[0] if found else "learner" if "learner" in words else "worker"


def listening(pid):
    """The ports on which the processes of a run listen, by their kind; and those that only this machine reaches."""
    found, inner = {}, set()
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        try:
            open_ports = [one.laddr for one in process.net_connections("inet") if one.status == psutil.CONN_LISTEN]
            if open_ports:
                found.setdefault(kind_of(process), set()).update(port for _, port in open_ports)
                inner |= {port for address, port in open_ports if address in ("127.0.0.1", "::1")}
        except psutil.Error:  # it has ended meanwhile
            continue
    return found, inner


def test_every_process_that_listens_is_named_in_the_threat_note(small_sd, tmp_path):
    path, log = tmp_path / "open.yaml", tmp_path / "log"
    settings = {"workers__learner__ranks": 2, "workers__sync": "broadcast", "rollout__prompts": 4}
    path.write_text(files.dump(small.run(small_sd, name="open", steps=400, rewards=small.slow(0.1), **settings)))
    with log.open("w") as out:
        words = command("train", path, "--runs", tmp_path)
        job = subprocess.Popen(words, stdout=out, stderr=subprocess.STDOUT, env=COLD)
    try:
        wait_for(lambda: "step 2/400" in log.read_text() or "error:" in log.read_text(), job)
        assert "error:" not in log.read_text(), log.read_text()
        found, inner = listening(job.pid)
    finally:
        job.terminate()
        job.wait(timeout=120)
    assert found.keys() <= NAMED.keys() and {"learner", "raylet", "gcs_server"} <= found.keys(), found
    assert all(NAMED[kind] in NOTE for kind in found)
    for kind in ("gcs_server", "raylet", "learner"):  # as the note says: on every interface
        assert found[kind] - inner, (kind, found, inner)
    assert 8265 not in found["dashboard"] - inner, (found, inner)
