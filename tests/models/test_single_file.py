"""Weights in one file, in their authors' layout, against the same weights in diffusers' own."""

import json
import shutil

import pytest
import torch

from pcpo_ray import models
from pcpo_ray.data.seeds import generator
from pcpo_ray.errors import ModelError
from pcpo_ray.models.texts import fingerprint
from tests.support import same_images, single_files, small

CPU = torch.device("cpu")
TEXT = "a red circle above a blue square"


def without_weights(model, folder):
    """The model's folder without its weights: what comes with a file."""
    copy = shutil.copytree(model, folder / model.name)
    for path in copy.rglob("*.safetensors"):
        path.unlink()
    return copy


@pytest.fixture(scope="module")
def described(small_sd, tmp_path_factory):
    return without_weights(small_sd, tmp_path_factory.mktemp("described"))


@pytest.fixture(scope="module")
def file(small_sd, tmp_path_factory):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(small_sd)
    return single_files.write(pipeline, tmp_path_factory.mktemp("files") / "whole.safetensors")


def load(path, **changes):
    run = small.run(path, **changes)
    return models.load(run.model, run.sampling, seed=0, device=CPU)


def outputs(denoiser):
    latents = torch.linspace(-1, 1, 4 * 8 * 8).reshape(1, 4, 8, 8)
    conditioning = denoiser.encode([TEXT])
    with torch.no_grad():
        return (
            conditioning["embeds"],
            denoiser.predict(latents, torch.full((len(latents),), 501.0), conditioning),
            denoiser.decode(latents),
        )


@pytest.mark.parametrize("model", ["small_sd", "small_sdxl", "small_sd3"])
def test_a_file_and_a_folder_without_weights_make_the_same_model(model, request, tmp_path):
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(request.getfixturevalue(model))
    if model == "small_sd3":  # the authors' file has no projection for its smaller CLIP, which stands for none at all
        torch.nn.init.eye_(pipeline.text_encoder.text_projection.weight)
    pipeline.save_pretrained(folder := tmp_path / request.getfixturevalue(model).name)
    file = single_files.write(pipeline, tmp_path / "whole.safetensors")
    described = without_weights(folder, tmp_path / "described")
    ours, theirs = load(described, model__single_file=file), load(folder)
    embeds, prediction, images = zip(outputs(ours), outputs(theirs), strict=True)
    for name, part in theirs.pipeline.components.items():
        if isinstance(part, torch.nn.Module):
            loaded = getattr(ours.pipeline, name).state_dict()
            assert loaded.keys() == part.state_dict().keys()
            assert all(torch.equal(loaded[key], weight) for key, weight in part.state_dict().items())
    assert torch.equal(*embeds) and (images[0] == images[1]).all()
    assert torch.allclose(*prediction, rtol=0, atol=1e-6)  # where weights lie in memory decides the last bits


def test_a_file_of_z_images_transformer_takes_all_else_from_the_folder(model, tmp_path):
    from diffusers import ZImageTransformer2DModel

    file = single_files.z_image(
        ZImageTransformer2DModel.from_pretrained(model("z_image") / "transformer"), tmp_path / "whole.safetensors"
    )
    bare = shutil.copytree(model("z_image"), tmp_path / "bare" / "small-z_image")
    for path in (bare / "transformer").glob("*.safetensors"):
        path.unlink()
    ours, theirs = load(bare, model__single_file=file), load(model("z_image"))
    latents = torch.linspace(-1, 1, 4 * 8 * 8).reshape(1, 4, 8, 8)
    both = [(one.encode([TEXT]), one.decode(latents)) for one in (ours, theirs)]
    assert torch.equal(both[0][0]["embeds"], both[1][0]["embeds"]) and same_images.same(both[0][1], both[1][1])
    loaded, kept = (one.pipeline.transformer.state_dict() for one in (ours, theirs))
    assert loaded.keys() == kept.keys() and all(torch.equal(loaded[name], weight) for name, weight in kept.items())


WIDTH = {"num_attention_heads": 24, "attention_head_dim": 128, "axes_dims_rope": (16, 56, 56)}
"""The published width of FLUX.1 and Chroma, the only one that diffusers' converters know."""


@pytest.mark.recipes  # for the gigabyte that it takes
@pytest.mark.parametrize("kind", ["chroma", "flux"])
def test_a_file_of_the_published_width_has_the_weights_of_its_transformer(kind, model_of_kind, tmp_path):
    import diffusers

    bare = without_weights(model_of_kind(kind), tmp_path / "bare")
    for part in ("vae", "text_encoder", "text_encoder_2"):
        for path in (model_of_kind(kind) / part).glob("*.safetensors"):
            shutil.copy(path, bare / part)
    settings = {**json.loads((bare / "transformer" / "config.json").read_text()), **WIDTH}
    (bare / "transformer" / "config.json").write_text(json.dumps(settings))
    with torch.device("meta"):
        transformer = getattr(diffusers, settings["_class_name"]).from_config(settings)
    transformer = transformer.to(torch.bfloat16).to_empty(device="cpu")
    for number, parameter in enumerate(transformer.parameters()):
        few = torch.randn(997 + number, generator=generator(number)).to(torch.bfloat16)
        parameter.data.copy_(
            few.repeat(-(-parameter.numel() // len(few)))[: parameter.numel()].reshape(parameter.shape)
        )
    file = single_files.flux(transformer, tmp_path / "whole.safetensors")
    train = "{kind: lora, rank: 2, targets: [to_q]}"
    ours = load(bare, model__single_file=file, model__dtype="bfloat16", model__train=train)
    loaded = {
        name.replace(".base_layer", ""): weight for name, weight in ours.pipeline.transformer.state_dict().items()
    }
    assert all(torch.equal(loaded[name], weight) for name, weight in transformer.named_parameters())
    file.unlink()


def test_a_file_without_a_vae_takes_the_folders(small_sd, tmp_path):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(small_sd)
    for parameter in [*pipeline.unet.parameters(), *pipeline.text_encoder.parameters()]:
        parameter.data.mul_(1.1)
    file = single_files.write(pipeline, tmp_path / "tuned.safetensors", vae=False)
    tuned, plain = (outputs(load(small_sd, **changes)) for changes in ({"model__single_file": file}, {}))
    assert not torch.equal(tuned[0], plain[0]) and not torch.equal(tuned[1], plain[1])
    assert (tuned[2] == plain[2]).all()


def test_its_texts_are_cached_apart_from_the_folders(small_sd, file, tmp_path):
    with_file, without = (
        small.run(small_sd, model__text_cache=tmp_path, **changes).model
        for changes in ({"model__single_file": file}, {})
    )
    assert fingerprint(with_file, small_sd) != fingerprint(without, small_sd)


def test_a_folder_of_another_architecture_is_refused(described, file, tmp_path):
    config = described / "unet" / "config.json"
    other = shutil.copytree(described, tmp_path / "small-other")
    (other / "unet" / "config.json").write_text(
        config.read_text().replace('"layers_per_block": 1', '"layers_per_block": 2')
    )
    with pytest.raises(ModelError, match=r"whole\.safetensors"):
        load(other, model__single_file=file)


def test_a_file_cut_short_and_one_that_is_not_there_are_refused(described, file, tmp_path):
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"cut\.safetensors is no whole safetensors file"):
        load(described, model__single_file=cut)
    with pytest.raises(ModelError, match=r"no file at model\.single_file"):
        load(described, model__single_file=tmp_path / "nowhere.safetensors")
