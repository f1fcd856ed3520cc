"""The most memory a process has had."""

import subprocess
import sys

from pcpo_ray.workers import memory

GROW = """
from pcpo_ray.workers import memory
before = memory.peak()
block = bytearray(200 * 2**20)
del block
after = memory.peak()
assert before.gpu == after.gpu == 0
print(after.resident - before.resident)
"""


def test_it_stays_when_what_was_taken_is_given_back():
    done = subprocess.run([sys.executable, "-c", GROW], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert 190 * 2**20 < int(done.stdout) < 260 * 2**20


def test_it_is_in_bytes():
    assert memory.peak().resident > 10 * 2**20
