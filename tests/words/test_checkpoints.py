"""The shipped models: small enough, in formats that others load, and as good as their README says."""

import logging

import pytest
import torch

from pcpo_ray.commands.pretrain.measure import accuracy
from pcpo_ray.commands.pretrain.words_world import WORLD
from pcpo_ray.words import CHECKPOINTS, checkpoint
from tests.support import ROOT

LARGEST, LARGEST_PACKAGE = 20_000_000, 45_000_000
"""Bytes of the shipped models of this world, and of the whole package."""

logging.getLogger("diffusers").setLevel(logging.ERROR)


def size(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def test_the_models_and_the_whole_package_stay_under_the_limit():
    assert size(CHECKPOINTS) <= LARGEST
    assert size(ROOT / "pcpo_ray") <= LARGEST_PACKAGE


@pytest.mark.parametrize(
    ("name", "kind", "guidance"),
    [("words-sd", "StableDiffusionPipeline", "guidance_scale"), ("words-flux", "FluxPipeline", "true_cfg_scale")],
)
def test_diffusers_loads_and_writes_with_them(name, kind, guidance):
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(checkpoint(name), torch_dtype=torch.float32)
    assert type(pipeline).__name__ == kind
    assert not any(
        weight.isnan().any()
        for part in pipeline.components.values()
        if isinstance(part, torch.nn.Module)
        for weight in part.parameters()
    )
    as_recipes = accuracy(WORLD, pipeline, 64, num_inference_steps=8, **{guidance: 1.0})
    assert 0.2 < as_recipes["all"] < 0.7  # not perfect: alignment has something to do
    assert as_recipes["colours"] > 0.9
    guided = accuracy(WORLD, pipeline, 48)
    assert guided["all"] > as_recipes["all"] + 0.1
