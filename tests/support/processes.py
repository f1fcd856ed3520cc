"""The command line in processes of its own."""

import os
import sys
import time

import psutil

from tests.support import ROOT, warm

ENVIRONMENT = {**os.environ, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
COLD = {name: value for name, value in ENVIRONMENT.items() if name not in warm.environment("")}
"""The same without warm workers, for tests that look for workers among the processes that Ray has started."""


def command(*words):
    return [sys.executable, "-m", "pcpo_ray.commands.app", *map(str, words)]


def head_of(job):
    """The host:port of the Ray that a run has started for itself, which need not be the only one on this machine."""
    (raylet,) = [one for one in psutil.Process(job.pid).children(recursive=True) if one.name() == "raylet"]
    return next(word.partition("=")[2] for word in raylet.cmdline() if word.startswith("--gcs-address="))


def wait_for(what, job, limit=300.0):
    deadline = time.monotonic() + limit
    while not what():
        assert job.poll() is None, "it ended before what was waited for"
        assert time.monotonic() < deadline, "it was waited for in vain"
        time.sleep(0.1)
