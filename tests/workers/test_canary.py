"""The canary finds out what equal bytes do not say: whether the network uses them."""

import dataclasses

import pytest
import torch

from pcpo_ray.data import weights
from pcpo_ray.errors import WeightsError
from pcpo_ray.models.pipeline import PipelineDenoiser
from pcpo_ray.workers import canary
from pcpo_ray.workers.learner.learner import Learner
from pcpo_ray.workers.sampler import Sampler
from tests.support import small

CPU = torch.device("cpu")


def trained(run):
    learner = Learner(run, CPU)
    with torch.no_grad():
        for parameter in learner.parameters.values():
            parameter.add_(0.1)
    return learner


@pytest.mark.parametrize("model", ["small_sd", "small_sdxl", "small_sd3", "small_flux"])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_sampler_and_learner_predict_the_same_without_any_text_encoder(model, scale, request):
    run = small.run(request.getfixturevalue(model), sampling__guidance_scale=scale)
    learner, sampler = trained(run), Sampler(run, CPU)
    sent = learner.weights()
    sampler.load(sent)
    assert canary.prediction(sampler.policy) == sent.manifest.canary
    assert len(set(sent.manifest.canary)) > 10
    for side in (learner.policy.denoiser, sampler.policy.denoiser):
        assert isinstance(side, PipelineDenoiser)
        assert all(getattr(side.pipeline, name) is None for name in side.encoders)


def test_it_does_not_depend_on_the_seed_of_the_run(small_sd):
    one, other = (Sampler(small.run(small_sd, seed=seed, model__train="{kind: full}"), CPU) for seed in (0, 1))
    assert canary.prediction(one.policy) == canary.prediction(other.policy)


def test_an_adapter_that_is_loaded_and_scaled_to_nothing_stops_the_run(small_sd):
    run = small.run(small_sd)
    sampler = Sampler(run, CPU)
    from peft.tuners.lora import LoraLayer

    for layer in sampler.policy.denoiser.module.modules():
        if isinstance(layer, LoraLayer):
            layer.scaling["default"] = 0.0
    with pytest.raises(WeightsError, match=r"version 0 .* predicts .* on the canary input.*does not use them"):
        sampler.load(trained(run).weights())


def test_a_load_that_binds_nothing_stops_the_run(small_sd, monkeypatch):
    run = small.run(small_sd)
    sampler = Sampler(run, CPU)
    monkeypatch.setattr(weights, "apply", lambda received, parameters: received.manifest.checksum)
    with pytest.raises(WeightsError, match="does not use them"):
        sampler.load(trained(run).weights())


def test_the_difference_is_counted_against_the_largest_value():
    canary.check([1.0, 100.0], [1.009, 100.0], dtype="float32", version=1, remedy="")
    with pytest.raises(WeightsError, match=r"predicts 1 on the canary input, the learner 1\.02 \(of at most 100;"):
        canary.check([1.0, 100.0], [1.02, 100.0], dtype="float32", version=1, remedy="")
    with pytest.raises(WeightsError, match="1 values here, 2"):
        canary.check([1.0], [1.0, 2.0], dtype="float32", version=1, remedy="")
    for here, sent, whose in (([float("nan")], [1.0], "this sampler"), ([1.0], [float("inf")], "the learner")):
        with pytest.raises(WeightsError, match=f"prediction of {whose} is not finite; wider$"):
            canary.check(here, sent, dtype="float16", version=1, remedy="wider")


def test_a_network_under_bf16_autocast_is_held_to_bfloat16s_limit(small_sd):
    """Autocast's bits differ between kinds of CPU by more than float32's limit."""
    run = small.run(small_sd, optimizer__mixed_precision="bf16")
    learner, sampler = trained(run), Sampler(run, CPU)
    sent = learner.weights()
    first, *others = sent.manifest.canary
    other = dataclasses.replace(sent.manifest, canary=(first * (1 + 1e-3), *others))
    sampler.load(dataclasses.replace(sent, manifest=other))
