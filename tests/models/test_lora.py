"""Beginning from a LoRA: what fits exactly is taken over, whatever does not is refused by name."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from pcpo_ray import models
from pcpo_ray.errors import ModelError
from pcpo_ray.trajectory import generator
from tests import small

CPU = torch.device("cpu")
FILE = "pytorch_lora_weights.safetensors"


def load(path, train="kind: lora, rank: 2, alpha: 2"):
    run = small.run(path, model__train=f"{{{train}}}")
    return models.load(run.model, run.sampling, seed=0, device=CPU)


def trained(path, folder):
    """A denoiser with an adapter that has learned something, and the folder it was written to."""
    denoiser = load(path)
    with torch.no_grad():
        for index, parameter in enumerate(denoiser.trainable().values()):
            parameter.normal_(0, 0.3, generator=generator(index))
    denoiser.save(folder, denoiser.trainable())
    return denoiser


def rewritten(source, folder, change):
    """A copy whose weights went through `change`, without what peft says about them."""
    folder.mkdir()
    save_file(change(load_file(source / FILE)), folder / FILE)
    return folder


@pytest.mark.parametrize("model", ["small_sd", "small_sdxl", "small_sd3", "small_flux"])
def test_it_is_the_adapter_that_was_written(model, request, tmp_path):
    path = request.getfixturevalue(model)
    written = trained(path, tmp_path / "lora")
    again = load(path, f"kind: lora, rank: 2, alpha: 2, start: {tmp_path / 'lora'}")
    assert all(torch.equal(p, again.trainable()[name]) for name, p in written.trainable().items())
    assert all(p.requires_grad and p.dtype == torch.float32 for p in again.trainable().values())


def test_the_names_of_older_diffusers_are_understood(small_sd, tmp_path):
    written = trained(small_sd, tmp_path / "lora")

    def older(weights):
        return {name.replace("lora_A", "lora.down").replace("lora_B", "lora.up"): w for name, w in weights.items()}

    folder = rewritten(tmp_path / "lora", tmp_path / "older", older)
    again = load(small_sd, f"kind: lora, rank: 2, alpha: 2, start: {folder}")
    assert all(torch.equal(p, again.trainable()[name]) for name, p in written.trainable().items())


def test_foreign_names_are_refused_by_name(small_sd, tmp_path):
    trained(small_sd, tmp_path / "lora")

    def foreign(weights):
        return {name.replace("attn2", "attn9"): weight for name, weight in weights.items()}

    folder = rewritten(tmp_path / "lora", tmp_path / "foreign", foreign)
    with pytest.raises(ModelError, match=r"not in it.*attn2.*no place here.*attn9"):
        load(small_sd, f"kind: lora, rank: 2, alpha: 2, start: {folder}")


def test_another_architectures_another_rank_and_another_alpha_are_refused(small_sd, small_flux, tmp_path):
    trained(small_sd, tmp_path / "lora")
    start = f"start: {tmp_path / 'lora'}"
    with pytest.raises(ModelError, match="no place here"):
        load(small_flux, f"kind: lora, rank: 2, alpha: 2, {start}")
    with pytest.raises(ModelError, match=r"another shape.*\(2, .*here \(4, "):
        load(small_sd, f"kind: lora, rank: 4, alpha: 2, {start}")
    with pytest.raises(ModelError, match=r"alpha \[2\.0\]; model\.train\.alpha is 4"):
        load(small_sd, f"kind: lora, rank: 2, alpha: 4, {start}")
    plain = rewritten(tmp_path / "lora", tmp_path / "plain", dict)
    with pytest.raises(ModelError, match="alpha 2; model"):
        load(small_sd, f"kind: lora, rank: 2, alpha: 4, start: {plain}")


def test_nothing_there_and_no_lora_are_refused(small_sd, tmp_path):
    with pytest.raises(ModelError, match="nothing at"):
        load(small_sd, f"kind: lora, rank: 2, alpha: 2, start: {tmp_path / 'nowhere'}")
    (tmp_path / FILE).write_bytes(b"no tensors")
    with pytest.raises(ModelError, match="cannot be read as a LoRA"):
        load(small_sd, f"kind: lora, rank: 2, alpha: 2, start: {tmp_path}")
