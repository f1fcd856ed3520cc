"""A process in which a thread hangs ends with its command's own status, and with all that it had to say."""

import subprocess
import sys

import pytest

SCRIPT = """
import atexit, sys, time
from pcpo_ray.process import leaving
atexit.register(time.sleep, 3600)
with leaving.ended():
    print("said")
    leaving.hangs()
    sys.exit({code})
"""


@pytest.mark.parametrize(("code", "status"), [("3", 3), ("None", 0), ("'why'", 1)])
def test_a_process_with_a_thread_that_hangs_ends_as_its_command(code, status):
    words = [sys.executable, "-c", SCRIPT.format(code=code)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (status, "said\n")


def test_any_other_process_ends_by_itself():
    script = SCRIPT.replace("leaving.hangs()", "").replace("3600", "0").format(code="3")
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60).returncode == 3
