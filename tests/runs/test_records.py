"""A run is found again by its folder."""

from typing import Any

import numpy as np
import pytest

from pcpo_ray.errors import (
    RunError,
)
from pcpo_ray.runs import configs, records
from pcpo_ray.runs.folder import LocalFolder
from pcpo_ray.training.recorder import Recorder
from tests.support import small


def test_a_run_that_is_not_there_is_answered_with_those_that_are(small_sd, tmp_path):
    Recorder.create(LocalFolder(local=tmp_path / "there"), small.run(small_sd))
    with pytest.raises(RunError, match=r"no run at .*absent; there are .*there"):
        configs.read(tmp_path / "absent")
    (tmp_path / "there" / "config.yaml").write_text("name: there\n")
    with pytest.raises(RunError, match=r"(?s)config.yaml is not a config of this version.*steps"):
        configs.read(tmp_path / "there")


def test_an_evaluation_is_read_in_order_and_a_missing_one_is_named(small_sd, tmp_path):
    recorder = Recorder.create(LocalFolder(local=tmp_path / "run"), small.run(small_sd))
    before = np.random.default_rng(0).normal(size=(3, 2))
    places: dict[str, Any] = {
        "position": np.repeat(np.arange(3), 2),
        "sample": np.tile(np.arange(2), 3),
        "prompt": ["x"] * 6,
    }
    for step, values in ((0, before), (4, before + 0.25)):
        recorder.samples("evaluations.parquet", step, {"step": [step] * 6, **places, "reward": list(values.ravel())})
    assert np.array_equal(records.evaluations(tmp_path / "run", 0)["reward"], before)
    assert np.array_equal(records.evaluations(tmp_path / "run", 4)["reward"], before + 0.25)
    with pytest.raises(RunError, match="no evaluation of step 9"):
        records.evaluations(tmp_path / "run", 9)
