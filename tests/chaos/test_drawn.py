"""Faults at random times in random settings: a run that went through them has the bits of one that did not."""

import os
import subprocess
import sys

import pytest

from tests.chaos.draws import RUNS, SEED
from tests.support import ROOT

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1500)]

ENVIRONMENT = {**os.environ, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

FIXED = (1,)
"""The runs that CI takes, whose time is short."""


@pytest.mark.parametrize("number", FIXED if os.environ.get("CI") == "true" else range(RUNS))
def test_faults_drawn_at_random_in_a_setting_drawn_at_random_change_no_bit(small_sd, tmp_path, number):
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos.drawn", str(small_sd), str(tmp_path), str(SEED), str(number)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        cwd=ROOT,
        timeout=1400,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
