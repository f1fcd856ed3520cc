"""A checkpoint is there whole or not at all."""

import errno
import os
import shutil
from pathlib import Path

import pytest
import torch

from pcpo_ray.data.updates import DriverState
from pcpo_ray.errors import CheckpointError, RunError
from pcpo_ray.runs import checkpoints
from pcpo_ray.workers.learner import sharding
from tests.support import small
from tests.support.checkpointing import write_checkpoint


def save(run, step, *, export=lambda folder: None):
    folder = checkpoints.folder_for(run, step)
    write_checkpoint(
        folder,
        version=step,
        state=DriverState(step=step, histories={"reward": {"a": [0.1, 0.2]}}),
        parameters={"w": torch.full((4,), float(step))},
        averaged={"w": torch.full((4,), step / 2)},
        optimizer={"w/exp_avg": torch.ones(4) / 3, "w/step": torch.tensor(float(step))},
        export=export,
    )
    return folder


def test_what_is_written_is_read_to_the_bit(tmp_path):
    loaded = checkpoints.read(save(tmp_path, 3))
    assert loaded.version == 3
    assert loaded.state == DriverState(step=3, histories={"reward": {"a": [0.1, 0.2]}})
    assert torch.equal(loaded.parameters["w"], torch.full((4,), 3.0))
    assert torch.equal(loaded.best["w"], torch.full((4,), 1.5))
    assert torch.equal(loaded.optimizer["w/exp_avg"], torch.ones(4) / 3)


@pytest.mark.parametrize(
    "name", ["trainable.safetensors", "averaged.safetensors", "optimizer.safetensors", "state.json"]
)
def test_one_cut_short_is_named_and_the_newest_whole_one_is_taken(tmp_path, name):
    older, newer = save(tmp_path, 1), save(tmp_path, 2)
    path = newer / name
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match=name):
        checkpoints.read(newer)
    said = []
    assert checkpoints.newest(tmp_path, said.append) == older
    assert "step-000002" in said[0]
    assert "falling back" in said[0]


def test_a_disk_that_fills_leaves_the_old_one_and_nothing_of_a_new_one(tmp_path):
    older = save(tmp_path, 1)

    def fill(folder):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(RunError, match="step-000002 cannot be written: No space left on device; free some space"):
        save(tmp_path, 2, export=fill)
    assert list((tmp_path / "checkpoints").iterdir()) == [older]
    save(tmp_path, 2)
    assert checkpoints.newest(tmp_path, pytest.fail) == checkpoints.folder_for(tmp_path, 2)


def test_all_files_are_synced_before_a_checkpoint_has_its_name(tmp_path, monkeypatch):
    done = small.watch_disk(monkeypatch)
    folder = save(tmp_path, 1, export=small.export)
    made = next(path for kind, path in done if kind == "rename").split(" -> ")[0]
    renamed = done.index(("rename", f"{made} -> {folder}"))
    names = ["trainable.safetensors", "averaged.safetensors", "optimizer.safetensors", "model/unet.safetensors"]
    synced = [path for kind, path in done[:renamed] if kind == "sync"]
    assert set(synced) == {*(f"{made}/{name}" for name in (*names, "state.json", "model")), made}
    last = synced.index(f"{made}/state.json")
    assert all(synced.index(f"{made}/{name}") < last for name in names)
    assert done[renamed + 1] == ("sync", str(folder.parent))


def test_a_step_written_again_exists_under_some_name_at_every_moment(tmp_path, monkeypatch):
    folder = save(tmp_path, 1)
    done = small.watch_disk(monkeypatch)
    save(tmp_path, 1, export=small.export)
    aside = folder.with_name(".step-000001.replaced")
    kinds = [(kind, path) for kind, path in done if kind in ("rename", "rmtree") and "step-000001" in path]
    renamed = kinds.index(("rename", f"{folder} -> {aside}"))
    assert kinds[renamed + 1][1].endswith(f" -> {folder}")
    assert ("rmtree", str(aside)) in kinds[renamed + 2 :] and (folder / "model").is_dir() and not aside.exists()


@pytest.mark.parametrize("reached", ["aside", "in"])
def test_power_lost_while_a_step_is_written_again_costs_nothing(tmp_path, monkeypatch, reached):
    class PowerCutError(BaseException):
        pass

    folder = save(tmp_path, 1)
    rename, cut = Path.rename, []

    def cutting(path, target):
        if cut:
            raise PowerCutError
        found = rename(path, target)
        if (path if reached == "aside" else Path(target)) == folder:
            cut.append(path)
            if reached == "in":
                raise PowerCutError
        return found

    monkeypatch.setattr(Path, "rename", cutting)
    with pytest.raises(PowerCutError):
        save(tmp_path, 1, export=small.export)
    monkeypatch.undo()
    (folder.parent / f".step-000003.{'a' * 32}.unfinished").mkdir()
    (folder.parent / ".step-000003.mine").mkdir()
    checkpoints.recover_interrupted(tmp_path)
    assert checkpoints.newest(tmp_path, pytest.fail) == folder
    assert (folder / "model").is_dir() == (reached == "in")
    assert sorted(path.name for path in folder.parent.iterdir()) == [".step-000003.mine", "step-000001"]


def test_what_only_begins_like_a_checkpoint_is_left_alone(tmp_path):
    for step in (1, 2, 999_999, 1_000_000):
        save(tmp_path, step)
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "step-000001", folder / "step-000001-best")
    shutil.copytree(folder / "step-000002", folder / "step-1.bak")
    shutil.copytree(folder / "step-000002", folder / "step-7")
    (folder / "step-000003").symlink_to(folder / "step-000002")
    (folder / "step-000004").write_text("mine")
    (folder / "step-000005.zip").write_text("mine")
    before = sorted(path.name for path in folder.iterdir())
    assert [path.name for path in checkpoints.all_checkpoints(tmp_path)] == [
        *("step-000001", "step-000002", "step-999999", "step-1000000")
    ]
    assert checkpoints.newest(tmp_path, pytest.fail).name == "step-1000000"
    checkpoints.recover_interrupted(tmp_path)
    checkpoints.prune(tmp_path, 1, 1_000_000)
    gone = {"step-000001", "step-000002", "step-999999"}
    assert sorted(path.name for path in folder.iterdir()) == [name for name in before if name not in gone]
    for step in (3, 4):
        with pytest.raises(CheckpointError, match=rf"step-00000{step} is in the way: a file or a link"):
            save(tmp_path, step)


def test_further_tensors_lie_in_a_checkpoint_and_are_watched_too(tmp_path):
    folder = checkpoints.folder_for(tmp_path, 3)
    with checkpoints.unfinished(folder) as made:
        sums = checkpoints.write_part(made, {"w": torch.ones(2)}, {}, {})
        sums |= checkpoints.write_more(made, "versions/2", {"bucket-0": torch.arange(5, dtype=torch.uint8)})
        checkpoints.finish(made, folder, version=3, state=DriverState(step=3), sums=sums)
    assert checkpoints.read(folder).parameters.keys() == {"w"}
    assert checkpoints.read_more(folder, "versions/2")["bucket-0"].tolist() == [0, 1, 2, 3, 4]
    (folder / "versions" / "2.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match=r"versions/2\.safetensors is cut short or changed"):
        checkpoints.verify(folder)


def test_only_the_newest_are_kept(tmp_path):
    for step in (1, 2, 10):
        save(tmp_path, step)
    checkpoints.prune(tmp_path, 2, 10)
    assert [folder.name for folder in checkpoints.all_checkpoints(tmp_path)] == ["step-000002", "step-000010"]


def test_parameters_of_another_model_are_refused(tmp_path):
    loaded = checkpoints.read(save(tmp_path, 1))
    with pytest.raises(CheckpointError, match="another model"):
        sharding.load_parameters(tmp_path, loaded.parameters, {"v": torch.nn.Parameter(torch.ones(4))})


def test_a_run_without_checkpoints_has_no_newest(tmp_path):
    assert checkpoints.newest(tmp_path, pytest.fail) is None


def test_float32_weights_return_to_the_bit_or_rounded_for_the_network(tmp_path):
    sent = {"a": torch.randn(3), "tiny": torch.tensor([1e-42, -0.0])}
    folder = checkpoints.folder_for(tmp_path, 1)
    write_checkpoint(
        folder,
        version=1,
        state=DriverState(step=1),
        parameters=sent,
        averaged={},
        optimizer={},
        export=lambda folder: None,
    )
    for dtype in (torch.float32, torch.bfloat16):
        here = {name: torch.nn.Parameter(torch.zeros_like(value, dtype=dtype)) for name, value in sent.items()}
        sharding.load_parameters(folder, checkpoints.read(folder).parameters, here)
        for name, value in sent.items():
            assert torch.equal(here[name].detach().view(torch.uint8), value.to(dtype).view(torch.uint8))


def test_weights_stored_in_less_than_float32_are_refused(tmp_path):
    here = {"w": torch.nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))}
    with pytest.raises(CheckpointError, match=r"1 of 1 parameters differ, such as \['w'\]"):
        sharding.load_parameters(tmp_path, {"w": torch.ones(3, dtype=torch.bfloat16)}, here)


def test_what_diffusers_will_load_is_watched_too(tmp_path):
    folder = save(tmp_path, 1, export=lambda beside: (beside / "lora.safetensors").write_bytes(b"12345"))
    (folder / "lora.safetensors").write_bytes(b"12349")
    with pytest.raises(CheckpointError, match=r"lora\.safetensors is cut short or changed"):
        checkpoints.read(folder)
    (folder / "lora.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lora\.safetensors is missing"):
        checkpoints.read(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": {}, "version": 1}', '{"files": 3}', '{"files": {}, "ver'])
def test_a_state_that_says_nothing_is_passed_over(tmp_path, text):
    older, newer = save(tmp_path, 1), save(tmp_path, 2)
    (newer / "state.json").write_text(text)
    said = []
    assert checkpoints.newest(tmp_path, said.append) == older
    assert "state.json cannot be read" in said[0]


def test_a_state_of_another_version_of_this_package_is_named(tmp_path):
    path = save(tmp_path, 1) / "state.json"
    path.write_text(path.read_text().replace('"histories"', '"memory"'))
    with pytest.raises(CheckpointError, match=r"state\.json cannot be read .*memory"):
        checkpoints.read(path.parent)


def test_when_none_is_whole_each_is_named_and_none_is_taken(tmp_path):
    for step in (1, 2):
        (save(tmp_path, step) / "trainable.safetensors").unlink()
    said = []
    assert checkpoints.newest(tmp_path, said.append) is None
    assert ["step-000002" in said[0], "step-000001" in said[1], len(said)] == [True, True, 2]


def test_a_step_written_again_replaces_the_old_and_leaves_nothing(tmp_path):
    folder = save(tmp_path, 1, export=lambda beside: (beside / "old").touch())
    save(tmp_path, 1)
    assert sorted(path.name for path in folder.iterdir()) == [
        "averaged.safetensors",
        "optimizer.safetensors",
        "state.json",
        "trainable.safetensors",
    ]
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("other", [torch.ones(5), torch.ones(2, 2)])
def test_parameters_of_another_shape_are_refused_and_left_alone(tmp_path, other):
    loaded = checkpoints.read(save(tmp_path, 2))
    here = {"w": torch.nn.Parameter(other.clone())}
    with pytest.raises(CheckpointError, match=r"1 of 1 parameters differ, such as \['w'\]"):
        sharding.load_parameters(tmp_path, loaded.parameters, here)
    assert torch.equal(here["w"], other)


def test_parts_of_several_ranks_are_read_as_one_and_a_missing_one_is_named(tmp_path):
    folder = checkpoints.folder_for(tmp_path, 1)
    tensors = [({"a": torch.zeros(2)}, {}, {}), ({"b": torch.ones(3)}, {}, {"b/step": torch.tensor(1.0)})]

    def write(lost):
        with checkpoints.unfinished(folder) as made:
            sums = {}
            for part, held in enumerate(tensors):
                sums |= checkpoints.write_part(made, *held, part=part, parts=2)
            for name in lost:
                (made / name).unlink()
            checkpoints.finish(made, folder, version=1, state=DriverState(step=1), sums=sums)

    with pytest.raises(
        CheckpointError, match=r"lacks \['trainable-2-of-2.safetensors'\].*storage that their nodes share"
    ):
        write(["trainable-2-of-2.safetensors"])
    assert checkpoints.all_checkpoints(tmp_path) == [] and list(folder.parent.iterdir()) == []
    write([])
    found = checkpoints.read(folder)
    assert found.parameters.keys() == {"a", "b"} and found.optimizer.keys() == {"b/step"} and not found.averaged
    (folder / "trainable-2-of-2.safetensors").unlink()
    with pytest.raises(CheckpointError, match="trainable-2-of-2"):
        checkpoints.read(folder)


def test_a_rank_on_another_disk_is_named(tmp_path):
    with pytest.raises(
        CheckpointError, match="is not on the disk of rank 1; the learner's ranks must write to storage"
    ):
        checkpoints.write_part(tmp_path / ".step-000001.x.unfinished", {}, {}, {}, part=1, parts=2)


@pytest.mark.parametrize("harm", ["half deleted", "changed"])
def test_pruning_counts_whole_ones_and_leaves_newer_ones_alone(tmp_path, harm):
    """A run that falls back to step 10, past a damaged 20, saves 13."""
    save(tmp_path, 5), save(tmp_path, 10)
    newer = save(tmp_path, 20)
    (newer / "state.json").unlink() if harm == "half deleted" else (newer / "trainable.safetensors").write_bytes(b"")
    save(tmp_path, 13)
    checkpoints.prune(tmp_path, 1, 13)
    assert [folder.name for folder in checkpoints.all_checkpoints(tmp_path)] == ["step-000013", "step-000020"]
    assert checkpoints.newest(tmp_path, lambda line: None) == checkpoints.folder_for(tmp_path, 13)


def test_one_half_deleted_is_not_among_those_kept(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step)
    (checkpoints.folder_for(tmp_path, 2) / "state.json").unlink()
    checkpoints.prune(tmp_path, 2, 3)
    assert checkpoints.steps(tmp_path) == [1, 3]
    assert [folder.name for folder in checkpoints.all_checkpoints(tmp_path)] == ["step-000001", "step-000003"]


@pytest.mark.parametrize(("umask", "expected"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_whoever_the_umask_allows_may_read_a_checkpoint(tmp_path, umask, expected):
    from safetensors.torch import save_file

    before = os.umask(umask)
    try:
        folder = save(tmp_path, 1, export=lambda made: save_file({"w": torch.ones(2)}, made / "lora.safetensors"))
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert modes.keys() >= {"lora.safetensors", "trainable.safetensors", "state.json"}
    assert set(modes.values()) == {expected}


def test_one_that_the_disk_cannot_read_is_passed_over(tmp_path, monkeypatch):
    older, newer, found = save(tmp_path, 1), save(tmp_path, 2), checkpoints.checksum

    def bad_sector(path):
        if path.parent == newer:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return found(path)

    monkeypatch.setattr(checkpoints, "checksum", bad_sector)
    said = []
    assert checkpoints.newest(tmp_path, said.append) == older
    assert len(said) == 1 and "cannot be read" in said[0] and "falling back" in said[0]
