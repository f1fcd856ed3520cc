"""What FLUX.2's folders say of distillation and guidance."""

import pytest
import torch

from pcpo_ray import models
from pcpo_ray.commands import session
from pcpo_ray.errors import ModelError
from tests.support import small


def distilled(model, folder):
    return small.rewritten(model("flux2_klein"), folder, "model_index.json", is_distilled=True)


def test_a_distilled_klein_has_no_guidance_and_is_warned_of(model, tmp_path, caplog):
    folder = distilled(model, tmp_path)
    with pytest.raises(ModelError, match=r"guidance_scale is 3\.0, .*guidance_scale=1, or take the base"):
        session.check_steps(small.run(folder, sampling__guidance_scale=3))
    run = small.run(folder)
    session.check_steps(run)
    assert "distilled to a few steps" in caplog.text
    denoiser = models.load(run.model, run.sampling, seed=0, device=torch.device("cpu"))
    assert set(denoiser.encode(["a ring"])) == {"embeds"}


def test_a_base_is_not_warned_of(model, caplog):
    session.check_steps(small.run(model("flux2_klein")))
    assert caplog.text == ""


def test_a_klein_in_devs_pipeline_is_refused(model, tmp_path):
    folder = small.rewritten(model("flux2_dev"), tmp_path, "transformer/config.json", guidance_embeds=False)
    with pytest.raises(ModelError, match=r"guidance_embeds: false; .* take model\.kind=flux2_klein"):
        session.check_steps(small.run(folder))


def test_a_single_file_is_refused_as_diffusers_reads_none(model, tmp_path):
    (tmp_path / "klein.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    run = small.run(model("flux2_klein"), model__single_file=tmp_path / "klein.safetensors")
    with pytest.raises(ModelError, match="reads no single files for a Flux2KleinPipeline"):
        session.check_steps(run)
