"""A process in which a thread hangs ends with its command's own status, and with all that it had to say."""

import signal
import subprocess
import sys
import time

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


INTERRUPTED = """
import os, sys
from pcpo_ray.commands import app
from pcpo_ray.process import terminal
terminal.LAST = 2.0

def command():
    print("x" * 1_000_000)  # more than a pipe takes that nobody reads, so that the end waits for its reader
    os.write(2, b"ready")
    raise KeyboardInterrupt

app.app.command("interrupted")(command)
sys.argv = ["pcpo-ray", "interrupted"]
app.main()
"""


def test_a_second_ctrl_c_at_the_very_end_changes_no_status():
    words = [sys.executable, "-c", INTERRUPTED]
    run = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert run.stderr is not None and run.stderr.read(5) == b"ready"
        while run.poll() is None:
            time.sleep(0.3)
            run.send_signal(signal.SIGINT)
        assert run.returncode == 130 and b"Traceback" not in run.stderr.read()
    finally:
        run.kill()
        run.communicate()
