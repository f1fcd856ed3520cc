"""Kernels: attention backends and compiled blocks, each refused before any weights are read where it cannot be."""

import os
import shutil

import pytest
import torch

from pcpo_ray import models
from pcpo_ray.commands import session
from pcpo_ray.errors import ConfigError, ModelError
from pcpo_ray.models import kernels
from pcpo_ray.workers.learner.learner import Learner
from pcpo_ray.workers.sampler import Sampler
from tests.support import small
from tests.support.trajectories import CPU, batch, pair

COMPILED = {"sampling__compile": "true", "objective__old_predictions": "recomputed"}

with_a_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None,
    reason="NOT TESTED HERE: torch.compile needs a C++ compiler, and this machine has neither CXX nor g++",
)


@pytest.fixture
def no_weights(small_sd, small_flux, tmp_path):
    """Copies of both models whose weights cannot be read."""
    return {path.name: small.hollow(path, tmp_path / path.name) for path in (small_sd, small_flux)}


def dispatched(network):
    """The backends that a network's attention is dispatched to."""
    layers = (getattr(layer, "processor", None) for layer in network.modules())
    return {layer._attention_backend for layer in layers if hasattr(layer, "_attention_backend")}


def test_both_roles_use_the_attention_that_is_asked_for_and_agree(small_flux):
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    active = _AttentionBackendRegistry._active_backend
    sampler, learner = pair(small_flux, model__attention="_native_math")
    assert dispatched(sampler.policy.denoiser.module) == dispatched(learner.policy.denoiser.module) == {"_native_math"}
    assert _AttentionBackendRegistry._active_backend == active
    _, other = pair(small_flux)
    assert dispatched(other.policy.denoiser.module) == {None}
    assert learner.update(1, batch(sampler, learner)).first_log_ratio == 0.0


def test_a_network_that_would_ignore_it_is_refused_before_it_is_read(no_weights, small_sd):
    run = small.run(no_weights[small_sd.name], model__attention="_native_math")
    with pytest.raises(ModelError, match=r"model\.attention is '_native_math', and diffusers does not dispatch"):
        models.load(run.model, run.sampling, seed=0, device=CPU)
    with pytest.raises(ModelError, match="does not dispatch the attention of a UNet2DConditionModel"):
        kernels.check(run.model, no_weights[small_sd.name], "unet")


def test_a_backend_without_its_package_is_refused_before_it_is_read(no_weights, small_flux):
    run = small.run(no_weights[small_flux.name], model__attention="xformers")
    with pytest.raises(ModelError, match=r"model\.attention is 'xformers': .*install"):
        models.load(run.model, run.sampling, seed=0, device=CPU)


def test_a_network_without_repeated_blocks_is_refused_before_it_is_read(small_sd3, tmp_path):
    folder = small.hollow(small_sd3, tmp_path / small_sd3.name)
    run = small.run(folder, **COMPILED)
    with pytest.raises(ModelError, match=r"sampling\.compile is true, and SD3Transformer2DModel names no repeated"):
        kernels.check(run.model, folder, "transformer", compiled="sampling.compile")


def test_a_run_is_checked_for_what_it_compiles_before_it_starts(small_sd3):
    with pytest.raises(ModelError, match=r"optimizer\.compile is true, and SD3Transformer2DModel"):
        session.check_steps(small.run(small_sd3, optimizer__compile="true", objective__old_predictions="recomputed"))


@pytest.mark.parametrize(("role", "key"), [(Sampler, "sampling"), (Learner, "optimizer")])
def test_a_machine_without_a_compiler_is_named_before_it_loads(no_weights, small_flux, monkeypatch, role, key):
    monkeypatch.setenv("CXX", "no-such-compiler")
    changes = {f"{key}__compile": "true", "objective__old_predictions": "recomputed"}
    run = small.run(no_weights[small_flux.name], **changes)
    with pytest.raises(ModelError, match=rf"{key}\.compile is true, and this machine has no no-such-compiler"):
        role(run, CPU)


def test_one_process_compiles_its_one_network_for_both_roles_or_none(small_flux):
    with pytest.raises(ConfigError, match=r"sampling\.compile is true and optimizer\.compile is false, and one"):
        session.stages(small.run(small_flux, **COMPILED), local=True, say=pytest.fail)


@with_a_compiler
@pytest.mark.timeout(1500)
def test_a_compiled_sampler_is_learned_from_and_its_mismatch_is_rounding(small_flux):
    run = small.run(small_flux, **COMPILED, optimizer__minibatches=2)
    sampler, learner = Sampler(run, CPU), Learner(run, CPU)
    blocks = kernels.repeated_blocks(sampler.policy.denoiser.module)
    assert len(blocks) == 2 and all(block._compiled_call_impl is not None for block in blocks)
    assert all(part._compiled_call_impl is None for part in learner.policy.denoiser.module.modules())
    groups = batch(sampler, learner)  # the canary is compared, too
    eager, _ = pair(small_flux)
    plain = batch(eager, learner)
    update = learner.update(1, groups)
    assert update.first_log_ratio == 0.0 and update.moved_fraction > 0
    assert update.mismatch["largest"] < 1e-5
    one, other = (made[0][1].predictions for made in (groups, plain))
    assert torch.allclose(one, other, rtol=1e-3, atol=1e-3)


@with_a_compiler
@pytest.mark.timeout(1500)
def test_a_compiled_learner_has_log_ratios_of_zero_at_unmoved_weights(small_flux):
    """Pairs of the second mini-batch are predicted before, by the code that trains on them."""
    changes = {"optimizer__compile": "true", "objective__old_predictions": "recomputed"}
    run = small.run(small_flux, **changes, optimizer__minibatches=2, optimizer__weight_decay=0)
    sampler, learner = Sampler(run, CPU), Learner(run, CPU)
    assert all(part._compiled_call_impl is None for part in sampler.policy.denoiser.module.modules())
    groups = [(version, one, [0.0] * 4) for version, one, _ in batch(sampler, learner)]
    update = learner.update(1, groups)
    assert update.diagnostics["overall"]["max_log_ratio"] == 0.0
    torch.compiler.reset()
