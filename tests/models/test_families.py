"""The newer flow models behind the Denoiser protocol, against their own pipelines of diffusers'."""

import dataclasses
import functools
import inspect

import numpy as np
import pytest
import torch

from pcpo_ray import models
from pcpo_ray.algorithm.transitions import flow_sde
from pcpo_ray.commands.plan.hollow import Hollow, size_of_module
from pcpo_ray.data.seeds import generator
from pcpo_ray.data.types import Prompt
from tests.support import families, same_images, small
from tests.support.trajectories import ADVANTAGES, CPU, pair, task

TEXTS = ["a ring", "a red circle above a blue square and a star", ""]
KINDS = pytest.mark.parametrize("kind", families.FAMILIES)
STEPS = 3


@pytest.fixture(scope="session")
def pipeline(model):
    """A kind's own pipeline, loaded once."""

    @functools.cache
    def loaded(kind):
        from diffusers import DiffusionPipeline

        made = DiffusionPipeline.from_pretrained(model(kind))
        made.set_progress_bar_config(disable=True)
        families.FAMILIES[kind].prepare(made)
        return made

    return loaded


@pytest.fixture(scope="session")
def denoiser(model):
    """A kind's denoiser with guidance and an adapter that changes what it predicts, made once."""

    @functools.cache
    def made(kind):
        found = load(model(kind), **families.guided(kind))
        with torch.no_grad():
            for name, parameter in found.trainable().items():
                parameter.copy_(torch.randn(parameter.shape, generator=generator(name)) * 0.3)
        return found

    return made


def noises(denoiser, count=3):
    return torch.stack([denoiser.initial_noise(generator(seed)) for seed in range(count)])


def predicted(denoiser, texts):
    noise = noises(denoiser, len(texts))
    with torch.no_grad():
        return denoiser.predict(noise, torch.linspace(900, 100, len(noise)), denoiser.encode(texts))


def load(path, **changes):
    run = small.run(path, **changes)
    return models.load(run.model, run.sampling, seed=0, device=CPU)


def deterministic(denoiser, noise):
    """The latents after the last step."""
    latents, schedule, texts = noise, denoiser.schedule(STEPS), denoiser.encode(TEXTS)
    with torch.no_grad():
        for timestep, step in zip(schedule.timesteps, flow_sde.steps(schedule, (0.0,) * STEPS), strict=True):
            prediction = denoiser.predict(latents, torch.full((len(latents),), timestep), texts)
            latents, _ = step.draw(latents, prediction, torch.zeros_like(latents))
    return latents


def theirs(pipeline, family, denoiser, noise, scale, negative=""):
    """The latents after the pipeline's last step, as ours are, and its images."""
    alone = family.one_by_one
    calls = [slice(place, place + 1) for place in range(len(TEXTS))] if alone else [slice(len(TEXTS))]
    given = family.given(denoiser, noise)
    made = [called(pipeline, family, TEXTS[call], given[call], scale, negative) for call in calls]
    latents, images = (list(parts) for parts in zip(*made, strict=True))
    return family.taken(denoiser, torch.cat(latents)), np.concatenate(images)


def called(pipeline, family, texts, noise, scale, negative):
    kept, options = {}, {**family.guided(scale, len(texts)), **family.extra}
    if negative and "negative_prompt" in inspect.signature(pipeline.__call__).parameters:
        options["negative_prompt"] = [negative] * len(texts)
    elif negative:
        embeds = pipeline.encode_prompt([negative] * len(texts), max_sequence_length=family.length)[0]
        options["negative_prompt_embeds"] = embeds
    if family.length is not None:
        options["max_sequence_length"] = family.length

    def last(pipe, step, timestep, tensors):
        kept["latents"] = tensors["latents"]
        return tensors

    images = pipeline(
        prompt=list(texts),  # Z-Image's pipeline writes into it
        latents=noise,
        num_inference_steps=STEPS,
        height=family.size[0],
        width=family.size[1],
        output_type="np",
        callback_on_step_end=last,
        **options,
    ).images
    opacity = images[..., 3:] if images.shape[-1] == 4 else 1.0
    return kept["latents"], np.round((images[..., :3] * opacity + 1 - opacity) * 255).astype(np.uint8)


@KINDS
def test_at_another_size_it_has_the_bits_of_a_model_loaded_at_that_size(kind, model, denoiser):
    ours, (height, width) = denoiser(kind), families.FAMILIES[kind].size
    larger = load(model(kind), **{**families.guided(kind), "sampling__height": 2 * height, "sampling__width": width})
    with torch.no_grad():
        for name, parameter in larger.trainable().items():
            parameter.copy_(ours.trainable()[name])
    before = predicted(ours, TEXTS)
    with ours.sampling_as(larger.sampling):
        found, images = predicted(ours, TEXTS), ours.decode(noises(ours))
    assert torch.equal(found, predicted(larger, TEXTS)) and (images == larger.decode(noises(larger))).all()
    assert images.shape[1:3] == (2 * height, width) and type(ours).several_sizes
    assert torch.equal(before, predicted(ours, TEXTS))


@KINDS
def test_without_noise_its_images_are_those_of_the_pipeline(kind, model, pipeline):
    family, found = families.FAMILIES[kind], []
    for scale in family.scales:
        denoiser = load(model(kind), **{**families.guided(kind), "sampling__guidance_scale": scale})
        negative = "a blue square" if denoiser.guided else ""
        sampling = dataclasses.replace(denoiser.sampling, negative_prompt=negative)
        noise = noises(denoiser)
        with denoiser.sampling_as(sampling):
            ours = deterministic(denoiser, noise)
        latents, images = theirs(pipeline(kind), family, denoiser, noise, scale, negative)
        assert (ours - latents).abs().max() < 2e-5
        assert same_images.same(denoiser.decode(latents), images) and images.std() > 5
        found.append(ours)
    assert all((one - found[0]).abs().max() > 1e-3 for one in found[1:])  # guidance


@KINDS
@pytest.mark.parametrize("changes", [{}, {"model__dtype": "bfloat16", "sampling__batch": 2}])
def test_at_unchanged_weights_every_log_ratio_is_exactly_zero(kind, model, changes):
    sampler, learner = pair(model(kind), **families.guided(kind), **changes)
    sampler.load(learner.weights())
    prompts = [Prompt(index=place, text=text) for place, text in enumerate(TEXTS[:2])]
    made = [
        sampler.sample(task(position=place, prompt=prompt, version=learner.version))[0]
        for place, prompt in enumerate(prompts)
    ]
    update = learner.update(1, [(learner.version, trajectory, ADVANTAGES) for trajectory in made])
    assert update.diagnostics["overall"]["max_log_ratio"] == 0.0
    assert update.gradient_norm > 0


@KINDS
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_prediction_does_not_depend_on_what_it_is_batched_with(kind, model, dtype):
    denoiser = load(model(kind), model__dtype=dtype, **families.guided(kind))
    one, other = predicted(denoiser, [TEXTS[0], TEXTS[1]]), predicted(denoiser, [TEXTS[0], TEXTS[2]])
    assert torch.equal(one[0], other[0]) and not torch.equal(one[1], other[1])
    assert torch.equal(one, predicted(denoiser, TEXTS[:2]))


@KINDS
def test_an_adapter_is_the_same_to_plain_diffusers_and_to_the_next_run(kind, model, denoiser, pipeline, tmp_path):
    family, ours = families.FAMILIES[kind], denoiser(kind)
    ours.save(tmp_path, ours.trainable())
    noise, plain = noises(ours), pipeline(kind)
    plain.load_lora_weights(tmp_path)
    try:
        latents, _ = theirs(plain, family, ours, noise, family.scales[-1])
    finally:
        plain.unload_lora_weights()
    assert (deterministic(ours, noise) - latents).abs().max() < 1e-4
    train = f"{{kind: lora, rank: 2, alpha: 2, start: {tmp_path}}}"
    again = load(model(kind), model__train=train, **families.guided(kind))
    assert again.trainable().keys() == ours.trainable().keys()
    assert torch.equal(predicted(again, TEXTS), predicted(ours, TEXTS))
    with ours.without_adapter():
        assert (predicted(ours, TEXTS) - predicted(again, TEXTS)).abs().max() > 0.01


@KINDS
def test_a_cached_text_is_the_same_bits_and_needs_no_encoder(kind, model, denoiser, tmp_path):
    cached = {**families.guided(kind), "model__text_cache": tmp_path, "model__vae_tiling": True}
    first = load(model(kind), **cached)
    encoded, second = first.encode(TEXTS), load(model(kind), **cached)
    again = second.encode(TEXTS)
    assert second.pipeline.text_encoder is None and first.pipeline.text_encoder is not None
    assert encoded.keys() == again.keys() == second.fixed_text().keys()
    assert all(torch.equal(encoded[name], again[name]) for name in encoded)
    assert second.pipeline.vae.use_tiling and second.decode(noises(second)).std() > 0


@KINDS
def test_gradient_checkpointing_changes_no_gradient(kind, model):
    gradients = []
    for checkpointing in (False, True):
        denoiser = load(model(kind), model__gradient_checkpointing=checkpointing, **families.guided(kind))
        with torch.no_grad():
            for index, parameter in enumerate(denoiser.trainable().values()):
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator(index)))
        noise = noises(denoiser, 2)
        denoiser.predict(noise, torch.tensor([900.0, 100.0]), denoiser.encode(TEXTS[:2])).square().sum().backward()
        gradients.append([parameter.grad for parameter in denoiser.trainable().values()])
    kept = [(one, other) for one, other in zip(*gradients, strict=True) if one is not None or other is not None]
    assert all(torch.equal(one, other) for one, other in kept)
    moving = [gradient for gradient, _ in kept if gradient.abs().max() > 0]
    assert len(moving) > 0.8 * len(gradients[0])  # a last layer's text goes nowhere


@KINDS
def test_it_is_planned_without_weights(kind, model, denoiser, tmp_path):
    folder = small.without_weights(model(kind), tmp_path / model(kind).name)
    run = small.run(folder, **families.guided(kind))
    hollow, real = Hollow(run.model, run.sampling), denoiser(kind)
    encoded = real.encode(TEXTS[:1])
    assert {name: row.shape for name, row in hollow.encoded[0].items()} == {
        name: row.shape for name, row in encoded.items()
    }
    assert size_of_module(hollow.network) == size_of_module(real.module)
    assert hollow.decoding(1, gpu=False) > 0 and hollow.predicting(1, mixed=False, gpu=False) > 0
    assert hollow.learning(1, mixed=False, kl=False, gpu=False) > 0
