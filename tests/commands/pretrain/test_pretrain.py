"""The training scripts: two steps of each write folders in their final formats."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pcpo_ray.commands.pretrain import clip, flux, sd, shapes_world, vae, words_world
from pcpo_ray.commands.pretrain.loop import Muon, RunningMean, orthogonalised, rate_factor
from pcpo_ray.commands.pretrain.measure import draw_back, rebuilt
from pcpo_ray.commands.pretrain.shapes_world import ONE_THING
from pcpo_ray.commands.pretrain.world import Bar
from pcpo_ray.shapes.captions import COLOURS, POSITIONS, RELATIONS, SHAPES, SIZES
from pcpo_ray.words.captions import parse, words_of

SHAPES_WORLD, WORDS_WORLD = shapes_world.WORLD, words_world.WORLD
BOTH = pytest.mark.parametrize("world", [SHAPES_WORLD, WORDS_WORLD], ids=lambda world: world.name)


LENGTHS = {
    "shapes-flux/text_encoder": 108.2837215136473,
    "shapes-flux/text_encoder_2": 344.82778822764806,
    "shapes-flux/transformer": 634.0500695551275,
    "shapes-flux/vae": 488.1428061666506,
    "shapes-sd/text_encoder": 174.67260359462887,
    "shapes-sd/unet": 1150.5655287032107,
    "shapes-sd/vae": 488.1428061666506,
}
"""The sums of the tensors' lengths after two steps of the code that trained the shipped models."""


def lengths(folder):
    return {
        f"{folder.name}/{path.parent.name}": sum(float(weight.double().norm()) for weight in load_file(path).values())
        for path in folder.rglob("*.safetensors")
    }


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrain")
    for world in (SHAPES_WORLD, WORDS_WORLD):
        vae.train(world, folder, 0, steps=2)
    return folder


@BOTH
def test_the_latents_of_the_trained_vae_have_mean_0_and_variance_1(world, out):
    rng = np.random.default_rng(0)
    images = world.images(rng, world.sample(rng, 128, "train"))
    latents = vae.load(world, out).encode(images).latent_dist.mean
    assert latents.shape[2:] == world.latent_size
    assert latents.mean(dim=(0, 2, 3)).abs().max() < 0.2
    assert (latents.std(dim=(0, 2, 3)) - 1).abs().max() < 0.2


@BOTH
def test_what_an_untrained_vae_keeps_of_drawn_images_is_measured(world, out):
    shares = rebuilt(world, out, 4)
    assert set(shares) >= {"all"} and shares["all"] == 0


@BOTH
def test_standardising_the_latents_leaves_the_decoded_images_as_they_were(world):
    torch.manual_seed(0)
    autoencoder = vae.build(world).eval()
    rng = np.random.default_rng(0)
    images = world.images(rng, world.sample(rng, 16, "train"))
    with torch.no_grad():
        before = autoencoder.decode(autoencoder.encode(images).latent_dist.mean).sample
        vae.standardise(autoencoder, images)
        after = autoencoder.decode(autoencoder.encode(images).latent_dist.mean).sample
    assert torch.allclose(before, after, atol=1e-4)


@BOTH
@pytest.mark.parametrize(("module", "kind"), [(sd, "sd"), (flux, "flux")])
def test_two_steps_of_a_base_model_write_a_pipeline_that_diffusers_loads(world, module, kind, out):
    from diffusers import DiffusionPipeline

    module.train(dataclasses.replace(world, bars={}), out, 0, steps=2, images=16, seen=2)
    folder = out / f"{world.name}-{kind}"
    pipeline = DiffusionPipeline.from_pretrained(folder)
    assert pipeline.vae.dtype == pipeline.text_encoder.dtype == torch.float32
    if world is SHAPES_WORLD:
        assert lengths(folder) == pytest.approx({name: LENGTHS[name] for name in lengths(folder)}, rel=1e-5)


@pytest.mark.parametrize(("good", "last"), [(0.0, "with 5% of its last weights"), (0.01, "after 4 steps")])
def test_a_base_model_that_reaches_its_bar_is_drawn_back_and_written(out, capsys, good, last):
    unet = out / "words-sd" / "unet"
    shutil.rmtree(unet, ignore_errors=True)
    sampling = {"num_inference_steps": 1, "guidance_scale": 1.0}
    bar = Bar(good=good, early=0.0, kept=0.0, count=2, every=2, sampling=sampling)
    sd.train(dataclasses.replace(WORDS_WORLD, bars={"sd": bar}), out, 0, steps=4, images=16)
    lines = [line for line in capsys.readouterr().out.splitlines() if "right in" in line]
    assert len(lines) == 2 and lines[-1].startswith(f"words-sd {last}, right in all 0%")
    assert load_file(unet / "diffusion_pytorch_model.safetensors")


def test_the_earliest_mixture_in_which_enough_is_right_is_kept():
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(layer.weight, 4.0)
    told = []

    def look(when):
        told.append(when)
        return layer.weight.item() / 4

    draw_back(layer, [torch.full((1, 1), 2.0)], 0.55, look)
    assert layer.weight.item() == pytest.approx(2.2)
    assert told == ["with 5% of its last weights", "with 10% of its last weights"]


def test_two_steps_of_clip_write_a_folder_that_open_clip_loads(tmp_path):
    import open_clip

    clip.train(SHAPES_WORLD, tmp_path, 0, steps=2)
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
    texts = SHAPES_WORLD.sample(np.random.default_rng(0), 2000, "train")
    ones = sum(" and " not in t and " above " not in t and " below " not in t and " of " not in t for t in texts)
    assert abs(ones / len(texts) - ONE_THING) < 0.04


@BOTH
@pytest.mark.parametrize("split", ["train", "held_out"])
def test_sampled_captions_are_of_their_split_and_have_an_answer_each(world, split):
    texts = world.sample(np.random.default_rng(1), 50, split)
    assert all(0 <= said < most for text in texts for said, most in zip(world.told(text), world.classes, strict=True))


def test_no_letters_of_a_training_caption_are_a_held_out_word():
    texts = WORDS_WORLD.sample(np.random.default_rng(1), 3000, "train")
    sampled = {words_world.content(text).word for text in texts}
    assert not sampled & set(words_of("held_out"))
    assert 0.3 < len(sampled & set(words_of("train"))) / len(sampled) < 0.7
    held_out = WORDS_WORLD.sample(np.random.default_rng(1), 300, "held_out")
    assert {parse(text).split for text in held_out} == {"held_out"}


def test_a_words_caption_tells_its_letters_and_its_colours():
    told = words_world.told('the word "zip" in red')
    assert told == [25, 8, 15, 26, 26, 0, 7]


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
    colour, shape, size, other_colour, other_shape, other_size, position, relation = shapes_world.told(
        "a small blue ring above a red star"
    )
    assert (COLOURS[colour], SHAPES[shape], SIZES[size]) == ("blue", "ring", "small")
    assert (COLOURS[other_colour], SHAPES[other_shape], other_size) == ("red", "star", len(SIZES))
    assert (position, RELATIONS[relation]) == (len(POSITIONS), "above")
    alone = shapes_world.told("a black cross at the left")
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
