"""A run's folder on this machine, and the choice between it and one in storage."""

import errno
import os
from pathlib import Path

from pcpo_ray.runs import checkpoints
from pcpo_ray.runs.folder import LocalFolder
from pcpo_ray.runs.places import folder_at, folder_below
from pcpo_ray.runs.stored import StoredFolder
from tests.support.running import saved


def test_a_path_names_a_local_folder_and_a_url_a_stored_one(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    home = folder_below(str(tmp_path / "runs"), "mine")
    assert home == folder_below("~/runs", "mine") == LocalFolder(local=tmp_path / "runs" / "mine")
    assert (home.place, home.here(), home.working_copy) == (str(home.local), home, None)
    assert not home.started()
    there = folder_below("s3://bucket/runs?region=here", "mine")
    assert there == folder_at("s3://bucket/runs/mine?region=here") and isinstance(there, StoredFolder)
    assert there.place == there.address == "s3://bucket/runs/mine"


def test_a_roll_back_sets_newer_checkpoints_aside(tmp_path):
    home = LocalFolder(local=tmp_path)
    for step in (1, 2, 3, 4):
        saved(tmp_path, step)
    home.prune(2, 4, 1)
    assert home.steps() == [1, 3, 4]
    home.set_aside_after(1)
    assert home.steps() == [1]
    assert sorted(path.name for path in (tmp_path / "set-aside").iterdir()) == ["step-000003", "step-000004"]


def test_a_roll_back_reaches_checkpoints_that_lie_on_another_device(tmp_path, monkeypatch):
    home, rename = LocalFolder(local=tmp_path), Path.rename
    for step in (1, 2, 3):
        saved(tmp_path, step)

    def across(path, target):
        if path.parent.name == "checkpoints" and Path(target).parent.name != "checkpoints":
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", across)
    home.set_aside_after(1)
    assert home.steps() == [1] and [path.name for path in checkpoints.all_checkpoints(tmp_path)] == ["step-000001"]
    aside = tmp_path / "set-aside"
    assert sorted(path.name for path in aside.iterdir()) == ["step-000002", "step-000003"]
    assert [checkpoints.read(aside / f"step-00000{step}").version for step in (2, 3)] == [2, 3]
