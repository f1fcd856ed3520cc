"""The training scripts: two steps of each write folders in their final formats."""

import numpy as np
import pytest
import torch

from pcpo_ray.commands.pretrain_shapes import clip, flux, sd, vae
from pcpo_ray.commands.pretrain_shapes.data import ONE_THING, sample_captions, sample_pictures
from pcpo_ray.commands.pretrain_shapes.loop import Muon, RunningMean, orthogonalised, rate_factor
from pcpo_ray.shapes.captions import COLOURS, POSITIONS, RELATIONS, SHAPES, SIZES


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrain")
    vae.train(folder, 0, steps=2)
    return folder


def test_the_latents_of_the_trained_vae_have_mean_0_and_variance_1(out):
    rng = np.random.default_rng(0)
    pictures = sample_pictures(rng, sample_captions(rng, 128))
    latents = vae.load(out).encode(pictures).latent_dist.mean
    assert latents.mean(dim=(0, 2, 3)).abs().max() < 0.2
    assert (latents.std(dim=(0, 2, 3)) - 1).abs().max() < 0.2


def test_standardising_the_latents_leaves_the_decoded_images_as_they_were():
    torch.manual_seed(0)
    autoencoder = vae.build().eval()
    rng = np.random.default_rng(0)
    pictures = sample_pictures(rng, sample_captions(rng, 16))
    with torch.no_grad():
        before = autoencoder.decode(autoencoder.encode(pictures).latent_dist.mean).sample
        vae.standardise(autoencoder, pictures)
        after = autoencoder.decode(autoencoder.encode(pictures).latent_dist.mean).sample
    assert torch.allclose(before, after, atol=1e-4)


@pytest.mark.parametrize("module", [sd, flux])
def test_two_steps_of_a_base_model_write_a_pipeline_that_diffusers_loads(module, out):
    from diffusers import DiffusionPipeline

    module.train(out, 0, steps=2, pictures=16, measured=2)
    pipeline = DiffusionPipeline.from_pretrained(out / module.NAME)
    assert pipeline.vae.dtype == pipeline.text_encoder.dtype == torch.float32


def test_two_steps_of_clip_write_a_folder_that_open_clip_loads(tmp_path):
    import open_clip

    clip.train(tmp_path, 0, steps=2)
    folder = f"local-dir:{tmp_path / clip.NAME}"
    model, _, _ = open_clip.create_model_and_transforms(folder)
    assert model.encode_text(open_clip.get_tokenizer(folder)(["a red circle"])).shape == (1, clip.WIDTH)


def test_a_contrast_scene_has_a_caption_and_others_that_contradict_it():
    rng = np.random.default_rng(0)
    for _ in range(30):
        scene = clip.sample_scene(rng)
        assert len({caption.text for caption in scene}) == clip.SIBLINGS
        assert all(caption.split == "train" for caption in scene)


def test_training_captions_are_of_their_split_and_of_one_or_two_things():
    texts = sample_captions(np.random.default_rng(0), 2000)
    ones = sum(" and " not in t and " above " not in t and " below " not in t and " of " not in t for t in texts)
    assert abs(ones / len(texts) - ONE_THING) < 0.04


def test_the_learning_rate_warms_up_to_its_peak_and_falls_to_a_twentieth():
    factors = [rate_factor(step, 1000, 100) for step in range(1000)]
    assert factors[0] == 0.01 and max(factors) == factors[99] == 1.0
    assert factors[99:] == sorted(factors[99:], reverse=True) and abs(factors[-1] - 0.05) < 1e-3


def test_the_running_mean_is_in_force_only_inside_its_context():
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(layer.weight)
    mean = RunningMean(layer)
    torch.nn.init.ones_(layer.weight)
    mean.update()
    with mean.applied():
        assert layer.weight.item() == pytest.approx(1 - 2 / 11)
    assert layer.weight.item() == 1


def test_what_a_caption_tells_is_one_class_a_question():
    colour, shape, size, other_colour, other_shape, other_size, position, relation = flux.told(
        "a small blue ring above a red star"
    )
    assert (COLOURS[colour], SHAPES[shape], SIZES[size]) == ("blue", "ring", "small")
    assert (COLOURS[other_colour], SHAPES[other_shape], other_size) == ("red", "star", len(SIZES))
    assert (position, RELATIONS[relation]) == (len(POSITIONS), "above")
    alone = flux.told("a black cross at the left")
    assert alone[3:6] == [len(COLOURS), len(SHAPES), len(SIZES)] and POSITIONS[alone[6]] == "at the left"


@pytest.mark.parametrize("shape", [(128, 512), (512, 128), (64, 64)])
def test_muon_takes_the_steps_of_torchs(shape):
    """Torch's is in bfloat16, so its steps agree to that."""
    torch.manual_seed(0)
    start, gradients = torch.randn(shape), torch.randn(3, *shape)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    settings = {"lr": 0.02, "weight_decay": 0.1}
    pairs = [
        (ours, Muon([ours], **settings)),
        (theirs, torch.optim.Muon([theirs], adjust_lr_fn="match_rms_adamw", **settings)),
    ]
    for gradient in gradients:
        for parameter, optimiser in pairs:
            parameter.grad = gradient.clone()
            optimiser.step()
    moved = (theirs - start * (1 - 0.02 * 0.1) ** 3).norm()
    assert (ours - theirs).norm() < 0.03 * moved


def test_orthogonalised_matrices_have_singular_values_of_about_one():
    found = torch.linalg.svdvals(orthogonalised(torch.randn(3, 24, 40, generator=torch.Generator().manual_seed(0))))
    assert found.min() > 0.5 and found.max() < 1.3
