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
    "monitor": "44217",
    "agent": "each node's agent",
    "driver": "ports of nodes and workers",
    "worker": "ports of nodes and workers",
    "sampler": "`workers.sync=broadcast`",
    "learner": "TCPStore",
}
"""By the kind of process that listens, the note's words."""

KINDS = {
    "pcpo_ray.commands.app": "driver",
    "gcs/gcs_server": "gcs_server",
    "raylet/raylet": "raylet",
    "dashboard/dashboard.py": "dashboard",
    "autoscaler/_private/monitor.py": "monitor",
    "ray::dashboardagent": "agent",
    "ray::runtimeenvagent": "agent",
    "ray::sampler": "sampler",
    "ray::learner": "learner",
    "ray::scorer": "worker",
    "ray::idle": "worker",
    "ray::controller": "worker",
}
"""By a part of a process's command, its kind."""


def kind_of(process):
    """Of a process of a run, or of Ray; of any other its whole command, which the note does not name."""
    words = " ".join(process.cmdline())[:400]
    return next((kind for part, kind in KINDS.items() if part in words.lower()), words)


def listening(pid):
    """The ports on which the processes of a run listen, by their kind; and those that only this machine reaches."""
    found, inner = {}, set()
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        try:
            open_ports = [one.laddr for one in process.net_connections("inet") if one.status == psutil.CONN_LISTEN]
            if open_ports:
                kind = kind_of(process)
                if kind == "worker" and len(open_ports) > 1:  # Ray's own is the only one that is named
                    kind = f"{kind} with {len(open_ports)} ports: {process.cmdline()}"
                found.setdefault(kind, set()).update(port for _, port in open_ports)
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
    assert kind_of(psutil.Process()) not in NAMED  # any other process's port would be found
    assert found.keys() <= NAMED.keys() and {"learner", "raylet", "gcs_server"} <= found.keys(), found
    assert all(NAMED[kind] in NOTE for kind in found)
    for kind in ("gcs_server", "raylet", "learner"):  # as the note says: on every interface
        assert found[kind] - inner, (kind, found, inner)
    assert 8265 not in found["dashboard"] - inner, (found, inner)
