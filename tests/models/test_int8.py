"""A LoRA on 8-bit weights: which layers have them, the same bits in both roles, whole runs, and what is refused."""

import dataclasses
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pcpo_ray import models
from pcpo_ray.commands import session
from pcpo_ray.config import files
from pcpo_ray.config.model import BACKBONES
from pcpo_ray.data.seeds import generator
from pcpo_ray.errors import ModelError
from pcpo_ray.models import int8
from pcpo_ray.runs import checkpoints
from pcpo_ray.workers.sampler import Sampler
from tests.support import families, single_files, small
from tests.support.int8 import INT8, plain, with_torchao
from tests.support.running import go, parameters, same
from tests.support.trajectories import CPU, batch, pair, same_bits, task


def load(path, **changes):
    run = small.run(path, **changes)
    return models.load(run.model, run.sampling, seed=0, device=CPU)


def predicted(denoiser, rows=2):
    latents = torch.stack([denoiser.initial_noise(generator(seed)) for seed in range(rows)])
    texts = {name: row.expand(rows, *row.shape[1:]) for name, row in denoiser.encode(["a red circle"]).items()}
    return denoiser.predict(latents, torch.full((rows,), float(denoiser.schedule(4).timesteps[1])), texts)


@with_torchao
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", BACKBONES)
def test_all_frozen_linear_layers_have_them_and_adapters_do_not(kind, model_of_kind, dtype):
    from torchao.quantization import Int8Tensor

    changes = {**(families.guided(kind) if kind in families.FAMILIES else {}), "model__dtype": dtype}
    unquantised, quantised = (load(model_of_kind(kind), **changes, **more) for more in ({}, INT8))
    theirs = dict(unquantised.module.named_modules())
    for name, layer in quantised.module.named_modules():
        if isinstance(layer, nn.Linear):
            frozen = not layer.weight.requires_grad
            assert isinstance(layer.weight, Int8Tensor) == frozen and frozen != (".lora_" in name)
            assert str(layer.weight.dtype).endswith(dtype if frozen else "float32")
            if frozen:  # half of a step of each row, and what bfloat16 rounds
                most = theirs[name].weight.abs().amax(1, keepdim=True) * (0.5 / 127 + 2**-7 * (dtype == "bfloat16"))
                assert ((plain(layer.weight) - theirs[name].weight).abs() <= most + 1e-7).all()
    one, other = predicted(quantised), predicted(unquantised).detach()
    assert 0 < (one - other).norm() < 0.05 * other.norm()
    one.square().sum().backward()
    gradients = [p.grad for p in quantised.trainable().values() if p.grad is not None]
    assert gradients and all(bool(g.isfinite().all()) for g in gradients) and any(bool(g.any()) for g in gradients)
    with torch.no_grad():
        assert torch.equal(predicted(quantised), one)


@with_torchao
@pytest.mark.parametrize("mixed", ["no", "bf16"])
@pytest.mark.parametrize(("fixture", "dtype"), [("small_sd", "float32"), ("small_flux", "bfloat16")])
def test_both_roles_have_the_same_bits_and_the_reference_is_the_base(request, fixture, dtype, mixed):
    changes = {**INT8, "model__dtype": dtype, "optimizer__mixed_precision": f"'{mixed}'", "objective__kl": 0.1}
    sampler, learner = pair(request.getfixturevalue(fixture), **changes)
    groups = batch(sampler, learner)  # the canary is compared, too
    other = Sampler(sampler.run, CPU)
    other.load(learner.weights())
    assert same_bits(other.sample(task())[0], groups[0][1])
    update = learner.update(1, groups)
    assert update.first_log_ratio == 0.0 and update.kl == 0.0 and update.moved_fraction > 0
    update = learner.update(2, batch(sampler, learner))
    assert update.first_log_ratio == 0.0 and update.kl > 0


@with_torchao
def test_gradients_are_those_of_the_same_weights_in_floating_point(small_flux):
    quantised, floating = load(small_flux, **INT8), load(small_flux)
    with torch.no_grad():
        theirs = dict(floating.module.named_modules())
        for name, layer in quantised.module.named_modules():
            if isinstance(layer, nn.Linear):
                theirs[name].weight.copy_(plain(layer.weight))
        for denoiser in (quantised, floating):
            for name, parameter in denoiser.trainable().items():
                parameter.copy_(torch.randn(parameter.shape, generator=generator(name)) * 0.1)
    for denoiser in (quantised, floating):
        predicted(denoiser).square().sum().backward()
    for name, parameter in floating.trainable().items():
        torch.testing.assert_close(quantised.trainable()[name].grad, parameter.grad, rtol=1e-3, atol=1e-6)


@with_torchao
def test_under_autocast_a_layer_gives_bfloat16_as_unquantised_ones_do(small_flux):
    found = []
    for denoiser in (load(small_flux), load(small_flux, **INT8)):
        layer = denoiser.module.transformer_blocks[0].ff.net[2]
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            found.append(layer(torch.linspace(-1, 1, layer.in_features)[None]))
    assert found[0].dtype == found[1].dtype == torch.bfloat16
    torch.testing.assert_close(found[0], found[1], rtol=0.05, atol=0.01)


@with_torchao
def test_a_single_file_has_the_bits_of_the_folder(small_sd, tmp_path):
    from diffusers import StableDiffusionPipeline

    file = single_files.write(StableDiffusionPipeline.from_pretrained(small_sd), tmp_path / "whole.safetensors")
    one, other = load(small_sd, **INT8), load(small_sd, **INT8, model__single_file=file)
    with torch.no_grad():
        assert torch.equal(predicted(one), predicted(other))


@with_torchao
def test_weights_that_are_not_finite_are_named_before_they_are_rounded(small_flux, tmp_path):
    copy = shutil.copytree(small_flux, tmp_path / small_flux.name)
    path = next((copy / "transformer").glob("*.safetensors"))
    weights = load_file(path)
    weights["proj_out.weight"][-1, -1] = float("nan")
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(ModelError, match=r"transformer hold numbers that are not finite: proj_out\.weight; expected"):
        load(copy, **INT8)


@with_torchao
def test_a_run_goes_on_to_the_same_bits_and_its_adapter_fits_the_model(small_flux, tmp_path):
    from diffusers import FluxPipeline

    run = small.run(small_flux, **INT8, optimizer__average=0.5)
    go(run, tmp_path / "run")
    first, second = (parameters(tmp_path / "run", step) for step in (1, 2))
    folder = checkpoints.folder_for(tmp_path / "run", 2)
    assert [path.name for path in folder.rglob("*.safetensors") if "transformer" in path.name] == []
    pipeline = FluxPipeline.from_pretrained(small_flux)
    pipeline.load_lora_weights(folder)
    updates = [layer for name, layer in pipeline.transformer.named_modules() if name.endswith("lora_B.default_0")]
    assert updates and all(bool(layer.weight.any()) for layer in updates)
    begun = load(small_flux, **INT8, model__train=f"{{kind: lora, rank: 2, alpha: 2, start: {folder}}}")
    unquantised = load(small_flux, model__train=f"{{kind: lora, rank: 2, alpha: 2, start: {folder}}}")
    assert same(begun.trainable(), unquantised.trainable())
    shutil.rmtree(folder)
    go(run, tmp_path / "run", found=True)
    assert same(parameters(tmp_path / "run", 2), second) and not same(first, second)


@with_torchao
def test_commands_train_evaluate_and_sample_a_run(command, small_sd, tmp_path):
    (tmp_path / "run.yaml").write_text(files.dump(small.run(small_sd, **INT8)))
    status, _, errors = command("train", "run.yaml", "--local")
    assert status == 0, errors
    assert "Torchao" not in errors and "torchao" not in errors
    status, said, errors = command("evaluate", "small", "--local")
    assert status == 0 and "jpeg_compressibility" in said, errors
    status, _, errors = command("sample", "small", "a red circle", "--compare", "--out", "sample.png")
    assert status == 0 and (tmp_path / "sample.png").stat().st_size, errors


def test_a_missing_torchao_is_named_before_anything_is_loaded(small_sd, tmp_path, monkeypatch):
    for name in ("torchao", "torchao.quantization"):
        monkeypatch.setitem(sys.modules, name, None)
    run = small.run(small.hollow(small_sd, tmp_path / small_sd.name), **INT8)
    for tried in (lambda: session.check_files(run), lambda: Sampler(run, CPU)):
        with pytest.raises(ModelError, match=r"pip install 'pcpo_ray\[int8\]' .*model\.quantization=null"):
            tried()
    int8.check(dataclasses.replace(run.model, quantization=None))
