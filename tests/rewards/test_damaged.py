"""CLIP weights that are cut short, foreign or missing are named errors; JPEG sizes do not drift."""

import shutil

import numpy as np
import pytest
import torch

from pcpo_ray import config, rewards, shapes
from pcpo_ray.errors import RewardError

CPU = torch.device("cpu")
RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
IMAGE = np.stack([RAMP, RAMP.T, 255 - RAMP], axis=-1)


@pytest.fixture
def clip_folder(tmp_path):
    return shutil.copytree(shapes.checkpoint("shapes-clip"), tmp_path / "clip")


def load(folder):
    return rewards.load(config.ClipScore(kind="clip_score", model=str(folder)), CPU)


def test_weights_cut_short_are_a_named_error(clip_folder):
    path = clip_folder / "open_clip_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RewardError, match=r"CLIP model '.*clip' cannot be loaded"):
        load(clip_folder)


def test_weights_that_are_missing_are_a_named_error_and_not_a_random_model(clip_folder):
    (clip_folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(RewardError, match=r"CLIP model '.*clip' cannot be loaded"):
        load(clip_folder)


def test_weights_of_another_model_are_a_named_error(clip_folder):
    from safetensors.torch import save_file

    save_file({"unknown": torch.ones(1)}, clip_folder / "open_clip_model.safetensors")
    with pytest.raises(RewardError, match=r"CLIP model '.*clip' cannot be loaded"):
        load(clip_folder)


def test_a_config_that_is_no_json_is_a_named_error(clip_folder):
    (clip_folder / "open_clip_config.json").write_text("{")
    with pytest.raises(RewardError, match=r"CLIP model '.*clip' cannot be loaded"):
        load(clip_folder)


def test_an_architecture_that_open_clip_does_not_have_is_named(tmp_path):
    (tmp_path / "some.pt").touch()
    with pytest.raises(RewardError, match="no architecture 'ViT-Q-99'"):
        rewards.check(config.ClipScore(kind="clip_score", model="ViT-Q-99", weights=str(tmp_path / "some.pt")))


@pytest.mark.parametrize(("quality", "kilobytes"), [(95, 0.697), (50, 0.653)])
def test_a_fixed_images_jpeg_has_the_size_it_always_had(quality, kilobytes):
    reward = rewards.load(config.Jpeg(kind="jpeg_incompressibility", quality=quality), CPU)
    assert reward.score(IMAGE[None], ["x"]) == pytest.approx([kilobytes], rel=0.01)  # encoders differ by a few bytes
