"""The published sizes: the networks of every kind of model have the parameters that their names say."""

import pytest
import torch

from pcpo_ray import models
from pcpo_ray.commands.bench import random_weights
from pcpo_ray.commands.plan import stand_ins
from pcpo_ray.commands.plan.hollow import class_in, made_of_config
from pcpo_ray.config.model import BACKBONES
from pcpo_ray.models.described import read_json
from tests.support import small

SIZES = {
    "sd15": ("stable_diffusion", 0.86e9, {"text_encoder": 0.123e9, "vae": 0.0837e9}),
    "sdxl": ("sdxl", 2.567e9, {"text_encoder": 0.123e9, "text_encoder_2": 0.695e9, "vae": 0.0837e9}),
    "sd35m": ("sd3", 2.24e9, {"text_encoder_2": 0.695e9, "text_encoder_3": 4.76e9}),
    "flux": ("flux", 11.9e9, {"text_encoder_2": 4.76e9}),
    "flux2-klein-4b": ("flux2_klein", 3.9e9, {"text_encoder": 4.0e9}),
    "flux2-klein-9b": ("flux2_klein", 9.08e9, {"text_encoder": 8.19e9}),
    "z-image": ("z_image", 6.15e9, {"text_encoder": 4.0e9}),
    "qwen-image": ("qwen_image", 20.4e9, {"text_encoder": 8.3e9}),
    "flux2-dev": ("flux2_dev", 32.2e9, {"text_encoder": 24.0e9}),
    "qwen-image-2.1": ("qwen_image_21", 7.1e9, {"text_encoder": 8.77e9}),
    "krea-2": ("krea2", 12.9e9, {"text_encoder": 4.44e9}),
    "lumina-2": ("lumina2", 2.61e9, {"text_encoder": 2.6e9}),
    "chroma": ("chroma", 8.9e9, {"text_encoder": 4.76e9}),
    "sana-0.6b": ("sana", 0.59e9, {"text_encoder": 2.6e9, "vae": 0.31e9}),
}


def parameters(folder, name, library, kind):
    with torch.device("meta"):
        return sum(
            parameter.numel() for parameter in made_of_config(class_in(library, kind), folder / name).parameters()
        )


@pytest.mark.parametrize("name", SIZES)
def test_a_network_has_the_size_that_it_is_published_with(name, tmp_path):
    kind, size, others = SIZES[name]
    folder = random_weights.MODELS[name](tmp_path / f"small-{'sd' if kind == 'stable_diffusion' else kind}")
    index = read_json(folder / "model_index.json")
    run = small.run(folder, sampling__height=1024, sampling__width=1024)
    assert run.model.kind == kind
    for part, expected in {models.class_of(run.model).part: size, **others}.items():
        assert parameters(folder, part, *index[part]) == pytest.approx(expected, rel=0.03), part
    assert len(models.schedule_of(models.folder_of(run.model, weights=False), run.model, run.sampling)) == 4


def test_the_sizes_of_every_kind_are_known():
    assert SIZES.keys() == {name for name in random_weights.MODELS if not name.startswith("clip-")}
    assert {kind for kind, _, _ in SIZES.values()} == {kind for kind, _ in stand_ins.MODELS.values()} == {*BACKBONES}
