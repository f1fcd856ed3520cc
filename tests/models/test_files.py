"""What a model's parts lack on disk is said before anything is loaded."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from pcpo_ray import models
from pcpo_ray.config import paths
from pcpo_ray.errors import ConfigError, ModelError
from pcpo_ray.models.files import VARIANT
from tests.support import small

CPU = torch.device("cpu")
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 3438354725\n"


def load(run):
    return models.load(run.model, run.sampling, seed=0, device=CPU)


def copied(model, folder):
    return shutil.copytree(model, folder / model.name)


def named(folder, variant, parts):
    """The folder, the weights of these parts renamed to a variant's."""
    for part in parts:
        for path in (folder / part).glob("*.safetensors"):
            path.rename(path.with_suffix(f".{variant}.safetensors"))
    return folder


@pytest.mark.parametrize(
    "file",
    [
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "model_index.json",
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
    ],
)
def test_a_git_lfs_pointer_is_named(small_sd, tmp_path, file):
    folder = copied(small_sd, tmp_path)
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text(POINTER)
    with pytest.raises(ModelError, match=rf"{file} is a git-lfs pointer.*git lfs pull"):
        models.folder_of(small.run(folder).model)
    plan_needs = not file.endswith(".safetensors")
    if not plan_needs:
        models.folder_of(small.run(folder).model, weights=False)


def test_a_single_file_that_is_a_pointer_is_named(small_sd, tmp_path):
    (tmp_path / "model.safetensors").write_text(POINTER)
    with pytest.raises(ModelError, match=r"model\.safetensors is a git-lfs pointer"):
        models.folder_of(small.run(small_sd, model__single_file=tmp_path / "model.safetensors").model)


def test_a_checkpoint_of_another_format_is_refused_with_the_conversion(small_sd, tmp_path):
    old = tmp_path / "v1.ckpt"
    shared = torch.ones(2, 2)
    torch.save({"state_dict": {"a": shared, "b": shared.T}, "global_step": 470000}, old)
    with pytest.raises(ModelError, match=r"a pickled file, not a \.safetensors one; convert it") as caught:
        models.folder_of(small.run(small_sd, model__single_file=old).model)
    python, option, code = shlex.split(str(caught.value).rpartition(" by ")[2])
    assert (python, option) == ("python", "-c")
    exec(code, {})
    from safetensors.torch import load_file

    assert load_file(tmp_path / "v1.safetensors").keys() == {"a", "b"}


def test_a_folder_of_a_variant_only_names_it_and_is_loaded_by_it(small_sd, tmp_path):
    folder = named(copied(small_sd, tmp_path), "fp16", ["unet", "vae", "text_encoder"])
    with pytest.raises(ModelError, match=r"variant 'fp16' only \(.*\.fp16\.safetensors\).*set model\.variant=fp16"):
        models.folder_of(small.run(folder).model)
    with pytest.raises(ModelError, match=r"model\.variant is 'bf16': set model\.variant=fp16"):
        models.folder_of(small.run(folder, model__variant="bf16").model)
    run, plain = small.run(folder, model__variant="fp16"), small.run(small_sd)
    one, other = load(run), load(plain)
    assert torch.equal(one.encode(["a ring"])["embeds"], other.encode(["a ring"])["embeds"])
    ours, theirs = (denoiser.pipeline.unet.state_dict() for denoiser in (one, other))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_part_without_the_variant_loads_the_plain_weights(small_sd, tmp_path):
    folder = named(copied(small_sd, tmp_path), "fp16", ["unet"])
    run = small.run(folder, model__variant="fp16")
    assert load(run).encode(["a ring"])


def test_variants_that_differ_from_part_to_part_send_nobody_in_a_circle(small_sd, tmp_path):
    folder = named(named(copied(small_sd, tmp_path), "fp16", ["unet"]), "bf16", ["vae"])
    for variant in ("null", "fp16", "bf16"):
        with pytest.raises(ModelError, match="no variant is there for all parts"):
            models.folder_of(small.run(folder, model__variant=variant).model)


def test_a_variant_that_no_part_has_is_refused_with_those_there_are(small_sd, tmp_path):
    folder = copied(small_sd, tmp_path)
    with pytest.raises(ModelError, match=r"model\.variant='fp16'; expected one of null only"):
        models.folder_of(small.run(folder, model__variant="fp16").model)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.copy(weights, weights.with_name("diffusion_pytorch_model.non_ema.safetensors"))
    with pytest.raises(ModelError, match=r"expected one of \['non_ema'\]"):
        models.folder_of(small.run(folder, model__variant="fp16").model)
    models.folder_of(small.run(folder).model)


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("model.safetensors", None),
        ("pytorch_model.bin", None),
        ("model-00001-of-00002.safetensors", None),
        ("model.fp16.safetensors", "fp16"),
        ("diffusion_pytorch_model.fp16-00001-of-00002.safetensors", "fp16"),
        ("diffusion_pytorch_model-00001-of-00002.fp16.bin", "fp16"),
        ("diffusion_pytorch_model.non_ema.bin", "non_ema"),
    ],
)
def test_a_files_variant_is_what_diffusers_calls_so(name, variant):
    matched = VARIANT.fullmatch(name)
    assert matched is not None and matched["variant"] == variant


def test_a_variant_with_a_single_file_is_refused(small_sd):
    with pytest.raises(ConfigError, match=r"model\.variant.*single_file"):
        small.run(small_sd, model__variant="fp16", model__single_file="file.safetensors")


@pytest.mark.parametrize("model", ["small_sd", "small_sdxl", "small_sd3", "small_flux"])
@pytest.mark.parametrize("length", [None, 10**30, 1000, 0, -1])
def test_a_tokenizer_without_a_length_is_named_and_the_advice_helps(request, tmp_path, model, length):
    folder = copied(request.getfixturevalue(model), tmp_path)
    path = folder / "tokenizer" / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings["model_max_length"] = length
    path.write_text(json.dumps({name: value for name, value in settings.items() if value is not None}))
    with pytest.raises(ModelError, match=r'tokenizer_config\.json .*write "model_max_length": 16 there'):
        models.folder_of(small.run(folder).model)
    path.write_text(json.dumps({**settings, "model_max_length": 16}))
    models.folder_of(small.run(folder).model)


def test_a_tokenizer_without_a_config_is_named(small_sd, tmp_path):
    folder = copied(small_sd, tmp_path)
    Path(folder / "tokenizer" / "tokenizer_config.json").unlink()
    with pytest.raises(ModelError, match=r"tokenizer_config\.json has model_max_length: None"):
        models.folder_of(small.run(folder).model)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_quantised_weights_are_refused_before_anything_is_loaded(small_sd, tmp_path, part):
    quantised = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    folder = small.rewritten(small_sd, tmp_path, f"{part}/config.json", **quantised)
    with pytest.raises(ModelError, match=rf"{part}/config\.json has a quantization_config \(bitsandbytes\).*take the"):
        models.folder_of(small.run(folder).model, weights=False)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (
            "sd15.safetensors",
            "is a file; give it as model.single_file=.*sd15.safetensors; model.path is then the folder",
        ),
        ("notes.txt", "is a file; expected a folder in diffusers' format"),
        ("./absnt", r"there is no such folder \(did you mean 'absent'\?\); expected a folder in diffusers' format"),
        ("./absent", "absent has no model_index.json; expected a folder in diffusers' format"),
        ("./above", r"above has no model_index.json, and .*above/model has one: give that"),
        ("./singles", "singles has no model_index.json; a file such as .*one.ckpt is given as model.single_file"),
    ],
)
def test_a_path_that_is_no_model_is_told_what_it_is(path, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("absent", "above/model", "singles"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("sd15.safetensors", "notes.txt", "above/model/model_index.json", "singles/one.ckpt"):
        (tmp_path / file).touch()
    model = paths.absolute(small.run("model", model__path=path)).model
    with pytest.raises(ModelError, match=words):
        models.folder_of(model)


@pytest.mark.parametrize("part", ["tokenizer", "scheduler", "text_encoder", "vae", "unet"])
def test_an_index_without_a_part_is_named_before_anything_is_loaded(small_sd, tmp_path, part):
    folder = copied(small_sd, tmp_path)
    path = folder / "model_index.json"
    index = json.loads(path.read_text())
    del index[part]
    path.write_text(json.dumps(index))
    with pytest.raises(ModelError, match=rf"model_index\.json names no {part}, without which there is no Stable"):
        models.folder_of(small.run(folder).model, weights=False)


def test_an_index_may_leave_out_what_its_pipeline_can_do_without(small_sd, tmp_path):
    folder = copied(small_sd, tmp_path)
    path = folder / "model_index.json"
    index = json.loads(path.read_text())
    left_out = {"safety_checker", "feature_extractor", "image_encoder", "requires_safety_checker"}
    path.write_text(json.dumps({key: value for key, value in index.items() if key not in left_out}))
    assert load(small.run(folder)).encode(["a ring"])
