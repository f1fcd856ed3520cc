"""Published models with random weights."""

import json

import pytest
import torch

from pcpo_ray import models
from pcpo_ray.commands.bench import random_weights
from pcpo_ray.errors import BenchError
from pcpo_ray.rewards import clip
from tests.support import small

CPU = torch.device("cpu")


@pytest.mark.parametrize("fixture", ["small_sd", "small_sd3", "small_flux"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_config_loads_random_weights_made_from_json_files_alone(request, monkeypatch, tmp_path, fixture, dtype):
    model = request.getfixturevalue(fixture)
    monkeypatch.setitem(random_weights.MODELS, "sd15", lambda folder: small.without_weights(model, folder))
    folder = tmp_path / model.name
    random_weights.write("sd15", folder, dtype, CPU)
    assert torch.get_default_dtype() is torch.float32
    run = small.run(folder, model__dtype=dtype)
    denoiser = models.load(run.model, run.sampling, seed=0, device=CPU)
    frozen = [p for p in denoiser.module.parameters() if not p.requires_grad]
    assert {p.dtype for p in frozen} == {getattr(torch, dtype)}
    latents = denoiser.initial_noise(torch.Generator().manual_seed(0))[None]
    with torch.no_grad():
        prediction = denoiser.predict(latents, torch.tensor([500.0]), denoiser.encode(["a red circle"]))
    assert prediction.isfinite().all() and prediction.std() > 0


def test_each_text_encoder_has_one_layer_and_its_width(small_sd3, monkeypatch, tmp_path):
    monkeypatch.setitem(random_weights.MODELS, "sd35m", lambda folder: small.without_weights(small_sd3, folder))
    random_weights.write("sd35m", tmp_path / "sd3", "float32", CPU)
    layers = {
        "text_encoder": "num_hidden_layers",
        "text_encoder_2": "num_hidden_layers",
        "text_encoder_3": "num_layers",
    }
    for name, layer in layers.items():
        there, before = (
            json.loads((folder / name / "config.json").read_text()) for folder in (tmp_path / "sd3", small_sd3)
        )
        width = "d_model" if layer == "num_layers" else "hidden_size"
        assert there[layer] == 1 and there[width] == before[width]


def test_a_clip_is_read_as_a_reward_reads_it(monkeypatch, tmp_path):
    from transformers import CLIPConfig

    towers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**towers, "vocab_size": 1000, "projection_dim": 16},
        vision_config={**towers, "image_size": 224, "patch_size": 112, "projection_dim": 16},
        projection_dim=16,
    )
    monkeypatch.setitem(random_weights.MODELS, "clip-l", config.save_pretrained)
    random_weights.write("clip-l", tmp_path / "clip", "float32", CPU)
    loaded = clip.load(str(tmp_path / "clip"), None, CPU)
    assert loaded.texts(["a red circle", "a blue square"]).shape == (2, 16)


@pytest.mark.parametrize(
    ("name", "dtype", "said"),
    [
        (
            "sd2",
            "float32",
            "no model 'sd2' is known; expected one of sd15, sdxl, sd35m, flux, flux2-klein-4b, .*clip-l, clip-h",
        ),
        ("sd15", "int8", "--dtype int8: expected one of float32, bfloat16, float16"),
    ],
)
def test_a_model_that_cannot_be_made_is_named_and_nothing_written(tmp_path, name, dtype, said):
    with pytest.raises(BenchError, match=said):
        random_weights.write(name, tmp_path / "model", dtype, CPU)
    assert not (tmp_path / "model").exists()


def test_a_folder_that_is_there_is_left_alone(tmp_path):
    with pytest.raises(BenchError, match="there already"):
        random_weights.write("sd15", tmp_path, "float32", CPU)
    assert not list(tmp_path.iterdir())
