"""What is planned for each kind of model is what its processes are then seen to take, within a fifth."""

import functools
import json
import os
import subprocess
import sys

import pytest

from pcpo_ray.commands.plan import roles
from pcpo_ray.config import files
from pcpo_ray.config.model import BACKBONES
from tests.support import ROOT, part, small, wide

KINDS = list(BACKBONES)
FIXED = ("sdxl", "sd3", "z_image", "qwen_image")
"""The kinds that CI takes: a UNet, two streams, one stream, and a language model as encoder."""
SIDE = dict.fromkeys(KINDS, 32) | dict.fromkeys(("lumina2", "qwen_image_21"), 64)
"""Pixels a side: at least four tokens."""


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """By kind, the run, and the bytes by which a process grew while each role worked; all are measured at first use."""

    @functools.cache
    def measured():
        folder, runs = tmp_path_factory.mktemp("wide"), {}
        kinds = FIXED if part.FIXED else KINDS
        for kind in kinds:
            guidance = 1.0 if kind in ("flux", "flux2_dev") else 3.0
            runs[kind] = small.run(
                wide.model(kind, folder / f"small-{kind}"),
                sampling__guidance_scale=guidance,
                sampling__steps=2,
                sampling__height=SIDE[kind],
                sampling__width=SIDE[kind],
                rollout__prompts=1,
            )
            (folder / f"{kind}.yaml").write_text(files.dump(runs[kind]))
        # glibc gives back what is freed, as in tests/commands/plan/test_roles.py
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**17), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "tests.support.measured", *(str(folder / f"{kind}.yaml") for kind in kinds)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=1500,
        )
        assert done.returncode == 0, done.stderr
        return runs, dict(zip(kinds, map(json.loads, done.stdout.splitlines()), strict=True))

    return measured


@pytest.mark.chaos  # for the minutes that it takes
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", [kind if kind in FIXED else pytest.param(kind, marks=part.MORE) for kind in KINDS])
def test_a_kinds_processes_grow_by_what_was_planned_within_a_fifth(kind, seen):
    runs, found = seen()
    for role in (roles.sampler, roles.learner):
        planned = role(runs[kind])
        assert planned.total > 64 * 2**20, "too little to be told from what else a process does"
        assert found[kind][planned.role] == pytest.approx(planned.total, rel=0.2), planned
