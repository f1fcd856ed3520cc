"""The published sizes of the newer flow models: their networks have the parameters that their names say."""

import pytest
import torch

from pcpo_ray import models
from pcpo_ray.commands.bench import published_flows
from pcpo_ray.commands.plan.hollow import class_in, made_of_config
from pcpo_ray.models.described import read_json
from tests.support import small

SIZES = {
    "flux2_klein": (3.9e9, {"text_encoder": 4.0e9}),
    "z_image": (6.15e9, {"text_encoder": 4.0e9}),
    "qwen_image": (20.4e9, {"text_encoder": 8.3e9}),
    "flux2_dev": (32.2e9, {"text_encoder": 24.0e9}),
    "qwen_image_21": (7.1e9, {"text_encoder": 8.77e9}),
    "krea2": (12.9e9, {"text_encoder": 4.44e9}),
    "lumina2": (2.61e9, {"text_encoder": 2.6e9}),
    "chroma": (8.9e9, {"text_encoder": 4.76e9}),
    "sana": (0.59e9, {"text_encoder": 2.6e9, "vae": 0.31e9}),
}


def parameters(folder, name, library, kind):
    with torch.device("meta"):
        return sum(
            parameter.numel() for parameter in made_of_config(class_in(library, kind), folder / name).parameters()
        )


@pytest.mark.parametrize("kind", SIZES)
def test_a_network_has_the_size_that_it_is_published_with(kind, tmp_path):
    folder = getattr(published_flows, kind)(tmp_path / f"small-{kind}")
    index = read_json(folder / "model_index.json")
    size, others = SIZES[kind]
    for name, expected in {"transformer": size, **others}.items():
        assert parameters(folder, name, *index[name]) == pytest.approx(expected, rel=0.03)
    run = small.run(folder, sampling__height=1024, sampling__width=1024)
    assert len(models.schedule_of(models.folder_of(run.model, weights=False), run.model, run.sampling)) == 4
