"""What the JSON files of a model's folder say is what its pipeline does, or is refused by name."""

import json
import shutil

import diffusers
import numpy as np
import pytest
import torch

from pcpo_ray import models
from pcpo_ray.data.seeds import generator
from pcpo_ray.errors import ModelError
from tests.support import same_images, small

CPU = torch.device("cpu")
MEAN, STD = [-1.6574, 1.886, -1.383, 2.5155], [8.4927, 5.9022, 6.5498, 5.2299]


def rewritten(model, folder, part, **changes):
    """A copy of a model one of whose parts' configs says something else."""
    copy = shutil.copytree(model, folder / model.name)
    path = copy / part / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return copy


def load(path, **changes):
    run = small.run(path, **changes)
    return models.load(run.model, run.sampling, seed=0, device=CPU)


def schedule_of(run):
    """As check, plan and study have it: nothing is loaded."""
    return models.schedule_of(models.folder_of(run.model), run.model, run.sampling)


def of_the_pipeline(folder, latents, **parts):
    """What the folder's own pipeline makes of latents after its last step."""
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, **parts)
    pipeline.set_progress_bar_config(disable=True)
    kept = {}

    def last(pipe, step, timestep, tensors):
        kept["latents"] = tensors["latents"]
        return tensors

    length = {"max_sequence_length": 16} if {"sd3", "flux"} & set(folder.name.split("-")) else {}
    images = pipeline(
        ["a ring"] * len(latents),
        latents=latents,
        num_inference_steps=2,
        height=16,
        width=16,
        output_type="np",
        callback_on_step_end=last,
        **length,
    ).images
    return kept["latents"], np.round(images * 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("small_sd", {"scaling_factor": 0.5}),
        ("small_sd", {"shift_factor": 0.0, "latents_mean": None, "latents_std": None}),
        ("small_sdxl", {"latents_mean": MEAN, "latents_std": STD, "scaling_factor": 0.5}),
        ("small_sdxl", {"use_post_quant_conv": False, "mid_block_add_attention": False}),
        ("small_sd3", {"shift_factor": 0.7, "scaling_factor": 1.5}),
        ("small_flux", {"shift_factor": -0.7}),
    ],
)
def test_a_vaes_config_means_what_its_pipeline_makes_of_it(request, tmp_path, model, changes):
    folder = rewritten(request.getfixturevalue(model), tmp_path, "vae", **changes)
    # written again, so that its files hold what the changed config describes and nothing else
    diffusers.AutoencoderKL.from_pretrained(folder / "vae").save_pretrained(folder / "vae")
    denoiser = load(folder)
    noise = torch.stack([denoiser.initial_noise(generator(seed)) for seed in range(2)])
    latents, images = of_the_pipeline(folder, noise)
    assert same_images.same(denoiser.decode(latents), images) and images.std() > 5


def test_other_vaes_decode_as_in_their_pipelines(small_sd, tmp_path):
    blocks = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    tiny = diffusers.AutoencoderTiny(**blocks, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1))
    asymmetric = diffusers.AsymmetricAutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        down_block_out_channels=(8, 8),
        up_block_types=("UpDecoderBlock2D",) * 2,
        up_block_out_channels=(8, 8),
        norm_num_groups=4,
    )
    for vae in (tiny, asymmetric):
        folder = tmp_path / type(vae).__name__
        diffusers.StableDiffusionPipeline.from_pretrained(small_sd, vae=vae).save_pretrained(folder)
        denoiser = load(folder)
        latents, images = of_the_pipeline(folder, torch.randn(2, *denoiser.latent_shape, generator=generator(0)))
        assert same_images.same(denoiser.decode(latents), images)
    with pytest.raises(ModelError, match=r"vae_tiling is true.*AsymmetricAutoencoderKL"):
        load(folder, model__vae_tiling=True)


@pytest.mark.parametrize(
    ("model", "changes", "words"),
    [
        (
            "small_sd",
            {"latents_mean": MEAN, "latents_std": STD},
            r"latents_mean.*StableDiffusionPipeline does not read",
        ),
        ("small_sd", {"shift_factor": 0.1}, r"shift_factor: 0\.1.*does not read"),
        ("small_sd", {"scaling_factor": None}, r"scaling_factor: null.*expected the number"),
        ("small_sdxl", {"shift_factor": 0.1}, r"shift_factor: 0\.1.*does not read"),
        ("small_sdxl", {"latents_std": STD}, "one of latents_mean and latents_std"),
        ("small_sd3", {"latents_std": STD}, r"latents_std.*StableDiffusion3Pipeline does not read"),
        ("small_flux", {"latents_mean": MEAN}, r"latents_mean.*FluxPipeline does not read"),
        ("small_flux", {"_class_name": "AutoencoderKLQwenImage"}, "AutoencoderKLQwenImage, which is not understood"),
        ("small_sd", {"block_out_channels": None}, "no block_out_channels"),
        ("small_sd", {"scaling_factor": "0.18215"}, 'scaling_factor: "0.18215"; expected a finite number'),
        ("small_flux", {"shift_factor": float("nan")}, "shift_factor: NaN; expected a finite number"),
        ("small_sdxl", {"latents_mean": [0.0], "latents_std": [1.0]}, r"latents_mean: \[0\.0\]; expected 4 finite"),
        ("small_sd", {"latent_channels": 16}, "gives 4, of latents of 16"),
    ],
)
def test_a_vae_that_is_not_understood_is_refused_before_it_is_loaded(request, tmp_path, model, changes, words):
    run = small.run(rewritten(request.getfixturevalue(model), tmp_path, "vae", **changes))
    with pytest.raises(ModelError, match=words):
        schedule_of(run)


@pytest.mark.parametrize(
    ("model", "part", "changes", "words"),
    [
        ("small_sd", "unet", {"in_channels": 9}, "takes 9 channels and gives 4"),
        ("small_sd", "unet", {"out_channels": 8}, "takes 4 channels and gives 8"),
        ("small_sd", "unet", {"time_cond_proj_dim": 256}, r"time_cond_proj_dim.*guidance"),
        ("small_sdxl", "unet", {"time_cond_proj_dim": 256}, r"time_cond_proj_dim.*guidance"),
        ("small_sd3", "transformer", {"in_channels": 8}, "takes 8 channels and gives 4"),
        ("small_flux", "transformer", {"in_channels": 32}, "takes 32 channels and gives 32, of latents of 4"),
    ],
)
def test_a_network_for_another_pipeline_is_refused_before_it_is_loaded(request, tmp_path, model, part, changes, words):
    run = small.run(rewritten(request.getfixturevalue(model), tmp_path, part, **changes))
    with pytest.raises(ModelError, match=words):
        schedule_of(run)


@pytest.mark.parametrize(
    ("model", "part", "changes", "expected"),
    [
        ("small_sd", "unet", {"sample_size": 12}, (24, 24)),
        ("small_sd", "unet", {"sample_size": [8, 12]}, (16, 24)),
        ("small_sd", "unet", {"sample_size": 12, "_diffusers_version": "0.8.1"}, (128, 128)),
        ("small_sd", "unet", {"sample_size": 12, "_diffusers_version": "0.10.2"}, (24, 24)),
        ("small_sdxl", "unet", {"sample_size": 12, "_diffusers_version": "0.8.1"}, (24, 24)),
        ("small_sd3", "transformer", {"sample_size": 12}, (24, 24)),
        ("small_flux", "transformer", {}, (256, 256)),
    ],
)
def test_the_default_size_is_the_pipelines(request, tmp_path, model, part, changes, expected):
    folder = rewritten(request.getfixturevalue(model), tmp_path, part, **changes)
    run = small.run(folder, sampling__height="null", sampling__width="null")
    kind = models.class_of(run.model)
    assert kind.size_in(kind.described(folder), run.sampling) == expected
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, text_encoder=None)
    if model != "small_sd":
        assert pipeline.default_sample_size * pipeline.vae_scale_factor == expected[0]
    else:
        size = pipeline.unet.config.sample_size
        pair = (size, size) if isinstance(size, int) else size
        assert tuple(side * pipeline.vae_scale_factor for side in pair) == expected


def test_a_network_without_a_size_asks_for_one(small_sd, tmp_path):
    folder = rewritten(small_sd, tmp_path, "unet", sample_size=None)
    run = small.run(folder, sampling__height="null", sampling__width="null")
    with pytest.raises(ModelError, match=r"sampling\.height and width are null.*set both"):
        schedule_of(run)
    assert len(schedule_of(small.run(folder))) == 4


@pytest.mark.parametrize("scale", [0.0, 0.5])
@pytest.mark.parametrize("model", ["small_sd", "small_sd3"])
def test_a_guidance_scale_up_to_1_is_none_as_in_the_pipelines(request, model, scale):
    folder = request.getfixturevalue(model)
    none, asked = (load(folder, sampling__guidance_scale=value) for value in (1.0, scale))
    noise = none.initial_noise(generator(0))[None]
    with torch.no_grad():
        one, other = (d.predict(noise, torch.tensor([501.0]), d.encode(["a ring"])) for d in (none, asked))
    assert torch.equal(one, other)
