"""A checkpoint is there whole or not at all."""

import pytest
import torch

from pcpo_ray import checkpoint
from pcpo_ray.errors import CheckpointError
from pcpo_ray.stages import State


def save(run, step, *, export=lambda folder: None):
    folder = checkpoint.folder_for(run, step)
    checkpoint.write(
        folder,
        version=step,
        state=State(step=step, history={"a": [0.1, 0.2]}),
        parameters={"w": torch.full((4,), float(step))},
        optimizer={"w/exp_avg": torch.ones(4) / 3, "w/step": torch.tensor(float(step))},
        export=export,
    )
    return folder


def test_what_is_written_is_read_to_the_bit(tmp_path):
    loaded = checkpoint.read(save(tmp_path, 3))
    assert loaded.version == 3
    assert loaded.state == State(step=3, history={"a": [0.1, 0.2]})
    assert torch.equal(loaded.parameters["w"], torch.full((4,), 3.0))
    assert torch.equal(loaded.optimizer["w/exp_avg"], torch.ones(4) / 3)


@pytest.mark.parametrize("name", ["trainable.safetensors", "optimizer.safetensors", "state.json"])
def test_one_cut_short_is_named_and_the_newest_whole_one_is_taken(tmp_path, name):
    older, newer = save(tmp_path, 1), save(tmp_path, 2)
    path = newer / name
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match=name):
        checkpoint.read(newer)
    said = []
    assert checkpoint.newest(tmp_path, said.append) == older
    assert "step-000002" in said[0]
    assert "falling back" in said[0]


def test_a_crash_while_writing_leaves_the_old_one_and_nothing_that_looks_like_a_new_one(tmp_path):
    older = save(tmp_path, 1)

    def crash(folder):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save(tmp_path, 2, export=crash)
    assert checkpoint.everyone(tmp_path) == [older]
    save(tmp_path, 2)
    assert checkpoint.newest(tmp_path, pytest.fail) == checkpoint.folder_for(tmp_path, 2)


def test_only_the_newest_are_kept(tmp_path):
    for step in (1, 2, 10):
        save(tmp_path, step)
    checkpoint.prune(tmp_path, 2)
    assert [folder.name for folder in checkpoint.everyone(tmp_path)] == ["step-000002", "step-000010"]


def test_parameters_of_another_model_are_refused(tmp_path):
    loaded = checkpoint.read(save(tmp_path, 1))
    with pytest.raises(CheckpointError, match="another model"):
        checkpoint.load_parameters(tmp_path, loaded.parameters, {"v": torch.nn.Parameter(torch.ones(4))})


def test_a_run_without_checkpoints_has_no_newest(tmp_path):
    assert checkpoint.newest(tmp_path, pytest.fail) is None
