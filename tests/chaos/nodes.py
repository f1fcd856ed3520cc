"""A cluster as people start it: `ray start`, a process a node, with token authentication; and proof that it is gone."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

from tests.support import ROOT

MARK = "PCPO_TEST_CLUSTER"


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Nodes:
    """A head of its own ports, token and folder; `add` starts further nodes. A context manager: all end with it."""

    def __init__(self):
        self.mark = uuid.uuid4().hex
        self.token = uuid.uuid4().hex
        self.folder = Path(tempfile.mkdtemp(prefix="ray-"))  # a socket's path may not be long
        self.port, self.dashboard_port, client = (free_port() for _ in range(3))
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            MARK: self.mark,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }
        self.started = []
        self.head = [
            *("--head", f"--port={self.port}", "--dashboard-host=127.0.0.1"),
            *(f"--dashboard-port={self.dashboard_port}", f"--ray-client-server-port={client}"),
        ]
        self.address = ""
        self.http = f"http://127.0.0.1:{self.dashboard_port}"

    def __enter__(self):
        self.add(self.head, resources='{"fixed": 2}')
        self.address = self._wait_for("--address='")
        return self

    def add(self, words=None, *, resources):
        """Start a node; it joins within seconds."""
        words = words or [f"--address={self.address}"]
        name = f"node-{len(self.started)}"
        with (self.folder / f"{name}.log").open("w") as log:
            node = subprocess.Popen(
                [
                    *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1", *words),
                    *(f"--resources={resources}", "--object-store-memory=100000000", "--dashboard-agent-listen-port=0"),
                    # as on machines of their own: a node deletes what its own workers need no more
                    f"--temp-dir={self.folder / name}",
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
                cwd=self.folder,
                start_new_session=True,
            )
        self.started.append(node)

    def __exit__(self, *_):
        for node in reversed(self.started):
            node.send_signal(signal.SIGTERM)
        for node in reversed(self.started):
            with contextlib.suppress(subprocess.TimeoutExpired):
                node.wait(timeout=20)
        deadline = time.monotonic() + 30
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.2)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.folder)
        assert not left, f"still there 30 s after the nodes were told to end: {left}"

    def processes(self):
        """What runs of all that this cluster ever started, by process id."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"{MARK}={self.mark}".encode() in (path / "environ").read_bytes():
                    found[int(path.name)] = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:100]
        return found

    def pcpo_ray(self, *words, **environment):
        """A command as a user gives it: what it says and its exit status, within 60 s."""
        return subprocess.run(
            self.words(*words),
            capture_output=True,
            text=True,
            timeout=60,
            env={**self.environment, **environment},
            cwd=self.folder,
        )

    def start(self, *words):
        """A command that goes on, and its output."""
        return subprocess.Popen(
            self.words(*words), stdout=subprocess.PIPE, text=True, env=self.environment, cwd=self.folder
        )

    def words(self, *words):
        return [sys.executable, "-m", "pcpo_ray.commands.app", *map(str, words)]

    def _wait_for(self, before):
        """What the head prints after `before`, in quotes."""
        log, deadline = self.folder / "node-0.log", time.monotonic() + 240
        while "Ray runtime started" not in (text := log.read_text()) or before not in text:
            assert self.started[0].poll() is None, text
            assert time.monotonic() < deadline, text
            time.sleep(0.2)
        return text.partition(before)[2].partition("'")[0]
