"""The sampler is a pure function of (run seed, task, weights)."""

import dataclasses

import numpy as np
import pytest
import torch

from pcpo_ray.data import prompts, tasks
from pcpo_ray.data.types import Prompt
from pcpo_ray.errors import TrainingError
from pcpo_ray.models.stable_diffusion import StableDiffusion
from pcpo_ray.workers.sampler import Sampler
from tests.support import small
from tests.support.trajectories import same_bits, task

CPU = torch.device("cpu")


def test_a_task_gives_the_same_bits_whatever_was_sampled_before_it(small_sd):
    run = small.run(small_sd)
    busy, fresh = Sampler(run, CPU), Sampler(run, CPU)
    busy.sample(task(position=1, prompt=Prompt(index=9, text="a small green ring")))
    one, images = busy.sample(task())
    other, expected = fresh.sample(task())
    assert same_bits(one, other)
    assert (images == expected).all()


def noise(sampler, asked):
    return sampler.policy.initial_noise(asked), sampler.policy.step_noise(asked)


def test_every_part_of_a_task_and_of_the_seed_changes_the_noise(small_sd):
    sampler = Sampler(small.run(small_sd), CPU)
    initial, steps = noise(sampler, task())
    others = [
        noise(sampler, changed)
        for changed in (
            task(step=2),
            task(position=1),
            task(prompt=Prompt(index=6, text="x")),
            task(purpose="evaluate"),
        )
    ]
    others.append(noise(Sampler(small.run(small_sd, seed=1), CPU), task()))
    for other_initial, other_steps in others:
        assert not torch.equal(initial, other_initial)
        assert not torch.equal(steps, other_steps)
    assert not torch.equal(initial[0], initial[1])


def test_an_image_has_the_same_noise_in_a_group_of_any_size(small_sd):
    sampler = Sampler(small.run(small_sd), CPU)
    (few, _), (many, _) = noise(sampler, task(images=2)), noise(sampler, task(images=6))
    assert torch.equal(few, many[:2])


def test_prompts_sampled_together_have_their_own_noise_and_text(small_sd):
    sampler = Sampler(small.run(small_sd), CPU)
    texts = ["a red circle above a blue square", "a small green ring", "two yellow stars"]
    first, *more = (Prompt(index=5 + n, text=text) for n, text in enumerate(texts))
    alone = [
        task(purpose="evaluate", images=2, prompt=prompt, position=3 + n) for n, prompt in enumerate((first, *more))
    ]
    together = task(purpose="evaluate", images=2, prompt=first, position=3, more=tuple(more))
    assert together.texts == [text for text in texts for _ in range(2)]
    for one, other in zip(
        noise(sampler, together), zip(*(noise(sampler, one) for one in alone), strict=True), strict=True
    ):
        assert torch.equal(one, torch.cat(other))
    none, images = sampler.sample(together)
    assert none is None
    expected = np.concatenate([sampler.sample(one)[1] for one in alone])
    apart = images.astype(int) - expected.astype(int)
    assert np.abs(apart).max() <= 1  # another number of images at once may round otherwise
    swapped = sampler.sample(task(purpose="evaluate", images=2, prompt=more[0], position=3, more=(first, more[1])))[1]
    assert np.abs(swapped.astype(int) - expected.astype(int)).max() > 1


def test_the_trajectory_is_the_chain_that_was_sampled(small_sd):
    sampler = Sampler(small.run(small_sd), CPU)
    trajectory, images = sampler.sample(task())
    steps = sampler.policy.credit.steps
    for k in range(len(steps) - 1):
        after, log_prob = steps[k].draw(trajectory.latents[:, k], trajectory.predictions[:, k], trajectory.noises[:, k])
        assert torch.equal(after, trajectory.latents[:, k + 1])
        assert torch.equal(log_prob, trajectory.log_probs[:, k])
    last, _ = steps[-1].draw(trajectory.latents[:, -1], trajectory.predictions[:, -1], trajectory.noises[:, -1])
    assert (sampler.policy.denoiser.decode(last) == images).all()


def test_only_trained_steps_are_kept_and_a_flow_ends_without_noise(small_flux):
    sampler = Sampler(small.run(small_flux, sampling__steps=5), CPU)
    assert sampler.sample(task())[0].steps.tolist() == [0, 1, 2, 3]
    assert sampler.policy.credit.steps[-1].std == 0
    first_two = Sampler(small.run(small_flux, sampling__steps=5, sampling__trained_steps=2), CPU)
    assert first_two.sample(task())[0].steps.tolist() == [0, 1]


def test_an_evaluation_carries_no_trajectory(small_sd):
    trajectory, images = Sampler(small.run(small_sd), CPU).sample(task(purpose="evaluate"))
    assert trajectory is None
    assert images.shape == (4, 16, 16, 3)


def test_interpolate_steps_with_the_mix_and_stores_the_networks_prediction(small_sd):
    sampler = Sampler(small.run(small_sd, credit__kind="interpolate", sampling__trained_steps=3), CPU)
    with torch.no_grad():
        for parameter in sampler.policy.denoiser.trainable().values():
            parameter.add_(0.1)
    trajectory, _ = sampler.sample(task())
    mix, steps = sampler.policy.credit.mix, sampler.policy.credit.steps
    assert mix[0] != 1.0
    latents, own = trajectory.latents[:, 0], trajectory.predictions[:, 0]
    rows = {name: row.expand(4, *row.shape[1:]) for name, row in trajectory.conditioning.items()}
    with torch.no_grad(), sampler.policy.denoiser.without_adapter():
        reference = sampler.policy.predict(latents, 0, rows)
    with torch.no_grad():
        assert torch.equal(own, sampler.policy.predict(latents, 0, rows))
    mixed = reference + mix[0] * (own - reference)
    after, _ = steps[0].draw(latents, mixed, trajectory.noises[:, 0])
    assert torch.equal(after, trajectory.latents[:, 1])


def test_with_shared_noise_a_group_starts_from_one_noise_and_parts_ways(small_sd):
    sampler = Sampler(small.run(small_sd, sampling__shared_noise=True), CPU)
    initial, steps = noise(sampler, task())
    assert all(torch.equal(initial[0], other) for other in initial)
    assert not torch.equal(steps[0], steps[1])
    assert not torch.equal(initial[0], noise(sampler, task(position=1))[0][0])
    _, images = sampler.sample(task())
    assert (images[0] != images[1]).any()


@pytest.mark.parametrize("subset", ["{kind: window, size: 2}", "{kind: share, share: 0.5}"])
def test_only_the_chosen_steps_travel(small_flux, subset):
    sampler = Sampler(small.run(small_flux, sampling__steps=8, sampling__subset=subset), CPU)
    trajectory, _ = sampler.sample(task())
    chosen = sampler.policy.credit_of(1, 0).trained
    assert tuple(trajectory.steps.tolist()) == chosen
    assert trajectory.latents.shape[1] == len(chosen) < len(sampler.policy.credit.trained)


def test_evaluations_sample_the_same_way_whatever_is_trained(small_flux):
    evaluation = task(purpose="evaluate", step=0)
    _, plain = Sampler(small.run(small_flux), CPU).sample(evaluation)
    _, windowed = Sampler(small.run(small_flux, sampling__subset="{kind: window, size: 1}"), CPU).sample(evaluation)
    assert (plain == windowed).all()


OWN = {  # guidance as in training, and the evaluation's
    "small_sd": (1.0, 3.0),
    "small_sdxl": (3.0, 1.0),
    "small_sd3": (2.0, 4.5),
    "small_flux": (1.0, 2.0),
    "small_flux_dev": (1.0, 3.5),
}


@pytest.mark.parametrize("kind", OWN)
def test_an_evaluation_with_own_steps_and_guidance_draws_as_such_a_run(request, kind):
    folder, (training, evaluated) = request.getfixturevalue(kind), OWN[kind]
    own = small.run(
        folder,
        sampling__guidance_scale=training,
        sampling__trained_steps=2,
        evaluation__sampling=f"{{steps: 6, guidance_scale: {evaluated}}}",
    )
    sampler, asked = Sampler(own, CPU), task(purpose="evaluate", step=0)
    before, _ = sampler.sample(task())
    _, images = sampler.sample(asked)
    after, _ = sampler.sample(task())
    assert same_bits(before, after) and before.conditioning.keys() == after.conditioning.keys()
    whole = small.run(folder, sampling__steps=6, sampling__guidance_scale=evaluated, credit__kind="native")
    assert (images == Sampler(whole, CPU).sample(asked)[1]).all()
    plain = small.run(folder, sampling__guidance_scale=training, sampling__trained_steps=2)
    assert (images != Sampler(plain, CPU).sample(asked)[1]).any()


def test_a_deterministic_evaluation_is_the_pipelines_own(small_flux):
    from diffusers import FluxPipeline

    run = small.run(small_flux, evaluation__sampling="{steps: 6, guidance_scale: 3, deterministic: true}")
    sampler, asked = Sampler(run, CPU), task(purpose="evaluate", step=0)
    _, images = sampler.sample(asked)
    pipeline = FluxPipeline.from_pretrained(small_flux)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        asked.texts,
        negative_prompt=[""] * 4,
        latents=sampler.policy.initial_noise(asked),
        true_cfg_scale=3.0,
        num_inference_steps=6,
        height=16,
        width=16,
        max_sequence_length=16,
        output_type="np",
    ).images
    assert np.abs(images.astype(int) - (theirs * 255).round().astype(int)).max() <= 1


@pytest.mark.parametrize("kind", ["small_sd", "small_sd3"])
def test_a_deterministic_evaluation_only_draws_each_images_initial_noise(request, kind, monkeypatch):
    own = {"sampling__shared_noise": True, "evaluation__sampling": "{deterministic: true}"}
    sampler = Sampler(small.run(request.getfixturevalue(kind), **own), CPU)
    _, images = sampler.sample(task(purpose="evaluate", step=0))
    assert len({image.tobytes() for image in images}) == 4
    with sampler.policy.evaluating():
        assert not sampler.policy.step_noise(task(purpose="evaluate")).any()
    assert sampler.policy.step_noise(task()).all()


def test_texts_are_encoded_ahead_once_for_all_who_share_a_cache(small_sd, tmp_path, monkeypatch):
    run = small.run(small_sd, model__text_cache=tmp_path)
    first, second = Sampler(run, CPU), Sampler(run, CPU)
    entered = []
    encode_one = StableDiffusion.encode_one

    def counted(self, text):
        entered.append(text)
        return encode_one(self, text)

    monkeypatch.setattr(StableDiffusion, "encode_one", counted)
    source = prompts.load(run.prompts, seed=run.seed)
    drawn = {prompt.text for step in (1, 2) for prompt in source.batch(step, run.rollout.prompts)}
    first.prepare(task())
    assert sorted(entered) == sorted(drawn)
    held_out = tasks.evaluation_tasks(run, prompts.sources(run)[1], 0)
    second.prepare(task(step=2))
    second.prepare(task(step=0, purpose="evaluate"))
    assert sorted(entered) == sorted(drawn | {prompt.text for asked in held_out for prompt in asked.prompts})


def test_without_a_shared_cache_no_text_is_encoded_ahead(small_sd, monkeypatch):
    sampler = Sampler(small.run(small_sd), CPU)
    entered: list[str] = []
    monkeypatch.setattr(StableDiffusion, "encode_one", lambda self, text: entered.append(text))
    sampler.prepare(task())
    assert entered == []


@pytest.mark.parametrize("storage", ["bfloat16", "float16"])
def test_a_trajectory_is_sampled_in_the_dtype_that_it_is_kept_in(small_sd, storage):
    run = small.run(small_sd, sampling__storage=storage, credit__kind="native")
    sampler = Sampler(run, CPU)
    trajectory, _ = sampler.sample(task())
    half = getattr(torch, storage)
    assert {tensor.dtype for tensor in (trajectory.latents, trajectory.predictions, trajectory.noises)} == {half}
    assert trajectory.log_probs.dtype == torch.float32
    for k, step in enumerate(sampler.policy.credit.steps[:-1]):
        drawn, _ = step.draw(trajectory.latents[:, k], trajectory.predictions[:, k], trajectory.noises[:, k])
        assert torch.equal(drawn, trajectory.latents[:, k + 1])


@pytest.mark.parametrize("purpose", ["train", "evaluate"])
def test_a_prediction_that_is_not_finite_ends_where_it_arises(small_sd, purpose):
    sampler = Sampler(small.run(small_sd), CPU)
    dict(sampler.policy.denoiser.module.named_parameters())["conv_out.bias"].data[0] = float("nan")
    with pytest.raises(TrainingError, match=r"predictions for .* are not finite; copy the files of the model"):
        sampler.sample(dataclasses.replace(task(), purpose=purpose))
