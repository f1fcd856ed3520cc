"""Faults at random times in random settings: a run that went through five of them has the bits of one that did not."""

import os
import subprocess
import sys

import pytest

from tests.support import ROOT

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1500)]

ENVIRONMENT = {**os.environ, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

EVERY = range(12)
FIXED = (1,)
"""The seeds that CI takes: five of the sixty pairs of a fault and a setting, as its time is short."""


@pytest.mark.parametrize("seed", FIXED if os.environ.get("CI") == "true" else EVERY)
def test_faults_drawn_at_random_in_a_setting_drawn_at_random_change_no_bit(small_sd, tmp_path, seed):
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos.drawn", str(small_sd), str(tmp_path), str(seed)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        cwd=ROOT,
        timeout=1400,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
