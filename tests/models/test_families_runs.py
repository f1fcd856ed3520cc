"""The newer flow models in runs: resumed, learned in other micro-batches, decoded in tiles."""

import shutil
from typing import Any

import numpy as np
import pytest
import torch

from pcpo_ray import models
from pcpo_ray.data.seeds import generator
from pcpo_ray.runs import checkpoints
from pcpo_ray.workers.learner import loss
from tests.support import families, small
from tests.support.running import go, parameters, same
from tests.support.trajectories import CPU, batch, pair

KINDS = pytest.mark.parametrize("kind", families.FAMILIES)


@KINDS
def test_a_run_goes_on_from_a_checkpoint_to_the_same_bits(kind, model, tmp_path):
    few = {"rollout": "{prompts: 1, images: 2}", "evaluation": "{count: 1, images: 1, every: 2}", "sampling__steps": 3}
    run = small.run(model(kind), **families.guided(kind), **few)
    go(run, tmp_path / "run")
    first, second = (parameters(tmp_path / "run", step) for step in (1, 2))
    shutil.rmtree(checkpoints.folder_for(tmp_path / "run", 2))
    go(run, tmp_path / "run", found=True)
    assert same(parameters(tmp_path / "run", 2), second) and not same(first, second)


@KINDS
def test_a_pass_over_other_pairs_than_a_sampler_takes_learns_the_same(kind, model):
    changes = {**families.guided(kind), "sampling__batch": 2}
    sampler, learner = pair(model(kind), **changes)
    _, other = pair(model(kind), **changes, optimizer__micro_batch=5)
    made = batch(sampler, learner)
    apart, together = learner.update(1, made), other.update(1, made)
    assert apart.diagnostics["overall"]["max_log_ratio"] == 0.0
    assert together.diagnostics["overall"]["max_log_ratio"] < 1e-6  # sums of another order, and nothing of the company
    assert together.gradient_norm == pytest.approx(apart.gradient_norm, rel=1e-4) and together.gradient_norm > 0
    assert together.loss == pytest.approx(apart.loss, rel=1e-4, abs=1e-6)


@KINDS
@pytest.mark.parametrize(
    ("dtype", "most"), [("float32", 1e-6), ("bfloat16", 0.0), ("float16", 0.0)], ids=["float32", "bfloat16", "float16"]
)
def test_passes_of_other_sizes_predict_what_images_alone_were_given(kind, model, dtype, most):
    """The farthest sizes: a sampler of single images, and a learner of as many as there are."""
    changes = {**families.guided(kind), "sampling__batch": 1, "model__dtype": dtype, "sampling__steps": 2}
    sampler, learner = pair(model(kind), **changes, optimizer__micro_batch=8)
    with torch.no_grad():
        for name, parameter in learner.policy.denoiser.trainable().items():  # a new adapter adds nothing
            parameter.copy_(torch.randn(parameter.shape, generator=generator(name)) * 0.1)
    made = batch(sampler, learner, count=1)
    assert all(bool(parameter.any()) for parameter in sampler.policy.denoiser.trainable().values())
    update = learner.update(1, made)
    assert update.diagnostics["overall"]["max_log_ratio"] <= most <= loss.FIRST_RATIO_LIMIT
    assert update.gradient_norm > 0


TILED = {
    "flux2_klein": (32, 48),
    "z_image": (32, 48),
    "qwen_image": (288, 32),
    "qwen_image_21": (288, 32),
    "sana": (576, 32),
}
"""A kind for each class of VAE, and a size that is larger than a tile of it."""


@pytest.mark.parametrize("kind", TILED)
def test_a_large_image_is_decoded_a_tile_at_a_time(kind, model):
    height, width = TILED[kind]
    run = small.run(model(kind), model__vae_tiling=True, sampling__height=height, sampling__width=width)
    denoiser: Any = models.load(run.model, run.sampling, seed=0, device=CPU)
    latents = denoiser.initial_noise(generator(0))[None]
    vae, seen = denoiser.pipeline.vae, []
    decode = vae.decoder.forward

    def decoded(rows, *rest, **options):
        seen.append(rows.shape[-2:].numel())
        return decode(rows, *rest, **options)

    vae.decoder.forward = decoded
    tiled, tiles = denoiser.decode(latents), len(seen)
    vae.use_tiling = False
    whole = denoiser.decode(latents)
    assert tiles > 1 and len(seen) == tiles + 1 and max(seen[:-1]) < seen[-1]
    assert tiled.shape == whole.shape == (1, height, width, 3)
    corner = np.s_[:, :4, :4]  # where no other tile is near
    assert np.abs(tiled[corner].astype(int) - whole[corner]).mean() < 0.3 * whole.std()
