"""The embedded diffusion architecture behind the Denoiser protocol, against diffusers' own pipeline."""

import shutil

import pytest
import torch

from pcpo_ray import models
from pcpo_ray.algorithm.transitions import ddim
from pcpo_ray.data.seeds import generator
from pcpo_ray.errors import ModelError, ScheduleError
from tests.support import single_files, small

CPU = torch.device("cpu")
TEXT = "a red circle above a blue square"


def load(path, **changes):
    run = small.run(path, **changes)
    return models.load(run.model, run.sampling, seed=0, device=CPU)


@pytest.mark.parametrize(
    "scheduler",
    [
        {},
        {"prediction_type": "v_prediction"},
        {"timestep_spacing": "trailing"},
        {"timestep_spacing": "linspace", "set_alpha_to_one": True},
        {"_class_name": "PNDMScheduler", "skip_prk_steps": True},  # as Stable Diffusion 1.5 has it
    ],
    ids=lambda changes: ", ".join(map(str, changes.values())),
)
@pytest.mark.parametrize(("scale", "texts", "size"), [(1.0, [TEXT], (16, 16)), (3.0, [TEXT, "a ring", ""], (24, 16))])
def test_without_noise_its_image_is_that_of_the_pipeline(small_sd, tmp_path, scheduler, scale, texts, size):
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    folder, (height, width) = small.rescheduled(small_sd, tmp_path, **scheduler), size
    denoiser = load(folder, sampling__guidance_scale=scale, sampling__height=height, sampling__width=width)
    noise = torch.stack([denoiser.initial_noise(generator(seed)) for seed in range(len(texts))])
    latents = noise
    schedule = denoiser.schedule(5)
    with torch.no_grad():
        for timestep, step in zip(schedule.timesteps, ddim.steps(schedule, eta=0.0), strict=True):
            prediction = denoiser.predict(latents, torch.full((len(latents),), float(timestep)), denoiser.encode(texts))
            latents, _ = step.draw(latents, prediction, torch.zeros_like(latents))
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        texts,
        latents=noise,
        guidance_scale=scale,
        num_inference_steps=5,
        height=height,
        width=width,
        output_type="latent",
    ).images
    assert torch.allclose(latents, theirs, rtol=1e-6, atol=1e-5)  # those of some schedules grow to 17


def test_its_schedule_is_the_one_that_diffusers_visits(small_sd):
    from diffusers import DDIMScheduler

    schedule = load(small_sd).schedule(7)
    scheduler = DDIMScheduler.from_pretrained(small_sd, subfolder="scheduler")
    scheduler.set_timesteps(7)
    assert list(schedule.timesteps) == scheduler.timesteps.tolist()
    assert schedule.alpha_bar_prev[-1] == pytest.approx(float(scheduler.final_alpha_cumprod))


def test_more_steps_than_the_model_was_trained_on_are_refused(small_sd):
    with pytest.raises(ScheduleError, match=r"1001.*1000"):
        load(small_sd).schedule(1001)
    with pytest.raises(ScheduleError, match=r"is 1000, which begin at timestep 1000 .*use fewer steps"):
        load(small_sd).schedule(1000)


def test_a_text_is_encoded_once(small_sd, monkeypatch):
    denoiser = load(small_sd)
    seen = []
    original = denoiser.encode_one

    def counted(text):
        seen.append(text)
        return original(text)

    monkeypatch.setattr(denoiser, "encode_one", counted)
    denoiser.encode([TEXT, "a blue ring", TEXT])
    denoiser.encode([TEXT])
    assert sorted(seen) == ["", "a blue ring", TEXT]


def test_a_fresh_adapter_changes_nothing_and_a_trained_one_can_be_left_out(small_sd):
    denoiser = load(small_sd)
    latents, conditioning = torch.randn(2, 4, 8, 8), denoiser.encode([TEXT, TEXT])
    with torch.no_grad():
        first = denoiser.predict(latents, torch.full((len(latents),), 501.0), conditioning)
        for parameter in denoiser.trainable().values():
            parameter.add_(0.1)
        changed = denoiser.predict(latents, torch.full((len(latents),), 501.0), conditioning)
        with denoiser.without_adapter():
            base = denoiser.predict(latents, torch.full((len(latents),), 501.0), conditioning)
        again = denoiser.predict(latents, torch.full((len(latents),), 501.0), conditioning)
    assert not torch.equal(first, changed)
    assert torch.equal(first, base)
    assert torch.equal(changed, again)


def test_adapters_of_the_same_seed_are_equal_and_only_they_are_trained(small_sd):
    one, other = load(small_sd), load(small_sd)
    assert all(torch.equal(p, other.trainable()[name]) for name, p in one.trainable().items())
    assert all("lora" in name for name in one.trainable())


def test_full_fine_tuning_trains_every_parameter_of_the_unet(small_sd):
    denoiser = load(small_sd, model__train="{kind: full}")
    assert len(denoiser.trainable()) == len(list(denoiser.pipeline.unet.parameters()))
    with pytest.raises(ModelError, match="keeps none"), denoiser.without_adapter():
        pass


@pytest.fixture(scope="module")
def checked_sd(small_sd, tmp_path_factory):
    """A model with a safety checker, as the original Stable Diffusion 1 has one."""
    from diffusers import StableDiffusionPipeline
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    tiny = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(text_config=tiny, vision_config={**tiny, "image_size": 32, "patch_size": 16}, projection_dim=16)
    pipeline = StableDiffusionPipeline.from_pretrained(
        small_sd,
        safety_checker=StableDiffusionSafetyChecker(config),
        feature_extractor=CLIPImageProcessor(),
        requires_safety_checker=True,
    )
    pipeline.save_pretrained(folder := tmp_path_factory.mktemp("models") / "checked-sd")
    return folder


def test_a_safety_checker_is_not_loaded_but_is_saved_by_full_training(checked_sd, tmp_path):
    from diffusers import StableDiffusionPipeline

    denoiser = load(checked_sd, model__train="{kind: full}")
    assert denoiser.pipeline.safety_checker is None and denoiser.pipeline.feature_extractor is None
    denoiser.save(tmp_path / "saved", denoiser.trainable())
    there, saved = (StableDiffusionPipeline.from_pretrained(path) for path in (checked_sd, tmp_path / "saved"))
    expected = there.safety_checker.state_dict()
    assert expected and saved.config.requires_safety_checker and saved.feature_extractor is not None
    assert all(torch.equal(value, expected[name]) for name, value in saved.safety_checker.state_dict().items())


def test_a_model_whose_safety_checker_was_not_copied_is_no_less_a_model(checked_sd, tmp_path):
    from diffusers import StableDiffusionPipeline

    folder = shutil.copytree(checked_sd, tmp_path / "checked-sd")
    shutil.rmtree(folder / "safety_checker")
    denoiser = load(folder, model__train="{kind: full}")
    denoiser.save(tmp_path / "saved", denoiser.trainable())
    assert StableDiffusionPipeline.from_pretrained(tmp_path / "saved").safety_checker is None


def test_a_single_files_safety_checker_is_not_looked_for(checked_sd, tmp_path):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(checked_sd)
    file = single_files.write(pipeline, tmp_path / "whole.safetensors")
    denoiser = load(checked_sd, model__single_file=str(file), model__train="{kind: full}")
    assert denoiser.pipeline.safety_checker is None
    denoiser.save(tmp_path / "saved", denoiser.trainable())
    assert not (tmp_path / "saved" / "safety_checker").exists()


def test_targets_that_name_no_layer_are_refused_with_the_names_there_are(small_sd):
    with pytest.raises(ModelError, match=r"'to_x'.*to_q"):
        load(small_sd, model__train="{kind: lora, targets: [to_q, to_x]}")


def test_a_missing_folder_and_one_of_another_kind_are_refused(small_sd, small_flux, tmp_path):
    with pytest.raises(ModelError, match="there is no such folder; expected a folder in diffusers' format"):
        models.folder_of(small.run(tmp_path / "nothing").model)
    with pytest.raises(ModelError, match=r"StableDiffusionPipeline.*FluxPipeline"):
        models.folder_of(
            small.run(
                small_sd, model__kind="flux", sampling__process="{kind: constant_noise}", credit__kind="native"
            ).model
        )
    with pytest.raises(ModelError, match="shapes-sd"):
        models.folder_of(small.run(small_sd, model__path="shapes-sdd").model)


def test_weights_cut_short_are_a_named_error(small_sd, tmp_path):
    copy = shutil.copytree(small_sd, tmp_path / "small-sd-copy")
    path = copy / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(copy)


def test_a_size_that_the_vae_cannot_give_is_refused(small_sd):
    with pytest.raises(ModelError, match="multiples of 4"):
        load(small_sd, sampling__height=18)


def test_another_prediction_type_is_refused(small_sd, tmp_path):
    run = small.run(small.rescheduled(small_sd, tmp_path, prediction_type="sample"))
    with pytest.raises(ModelError, match="'sample'"):
        models.schedule_of(models.folder_of(run.model), run.model, run.sampling)


def test_images_are_bytes_of_the_size_asked_for(small_sd):
    denoiser = load(small_sd, sampling__height=24, sampling__width=16)
    images = denoiser.decode(torch.randn(3, *denoiser.latent_shape))
    assert images.shape == (3, 24, 16, 3)
    assert images.dtype == "uint8"
