"""The README's lists of diffusers' text-to-image pipelines are the installed ones; what is not listed is refused."""

import diffusers
import pytest

from pcpo_ray.commands import session
from pcpo_ray.config.model import BACKBONES
from pcpo_ray.errors import ModelError
from tests.support import pipelines_table, small


def test_the_readme_lists_the_installed_pipelines():
    """Python -m tests.support.pipelines_table writes them."""
    text = pipelines_table.README.read_text(encoding="utf-8")
    assert text == pipelines_table.written(text)


class NewImagePipeline(diffusers.DiffusionPipeline):
    """One of a later version of diffusers', that its AutoPipeline does not know."""

    def __init__(self, transformer: diffusers.SanaTransformer2DModel) -> None: ...

    def __call__(self, prompt=None, image=None, height=None):
        return diffusers.ImagePipelineOutput(images=[])


class NewEditingPipeline(NewImagePipeline):
    def __call__(self, prompt=None, image=None, strength=0.8):
        return diffusers.ImagePipelineOutput(images=[])


def test_a_pipeline_that_diffusers_newly_exports_is_to_be_listed(monkeypatch):
    text = pipelines_table.README.read_text(encoding="utf-8")
    monkeypatch.setattr(diffusers, "NewEditingPipeline", NewEditingPipeline, raising=False)
    assert text == pipelines_table.written(text)
    monkeypatch.setattr(diffusers, "NewImagePipeline", NewImagePipeline, raising=False)
    assert "`NewImagePipeline` (sana)" in pipelines_table.written(text) != text


def test_every_kind_is_one_of_the_installed_pipelines():
    first = pipelines_table.table().split("\n- not supported")[0]
    assert all(f"({kind})" in first for kind in BACKBONES)


@pytest.mark.parametrize(
    ("kind", "pipeline"),
    [
        ("flux2_klein", "Flux2KleinKVPipeline"),  # keys and values of earlier steps
        ("z_image", "ZImageOmniPipeline"),
        ("qwen_image", "HunyuanImagePipeline"),  # guidance with the momentum of earlier steps
        ("qwen_image", "Ideogram4Pipeline"),  # a second network
    ],
)
def test_a_folder_of_a_pipeline_that_steps_otherwise_is_refused_by_name(kind, pipeline, model, tmp_path):
    folder = small.rewritten(model(kind), tmp_path, "model_index.json", _class_name=pipeline)
    with pytest.raises(ModelError, match=rf"holds a {pipeline}; model\.kind={kind} expects a "):
        session.check_steps(small.run(folder))


@pytest.mark.parametrize(
    "changes",
    [
        {"transformer_2": ["diffusers", "ZImageTransformer2DModel"]},
        {"guider": ["diffusers", "AdaptiveProjectedGuidance"]},
        {"boundary_ratio": 0.875},
    ],
)
def test_what_its_pipeline_does_not_read_of_a_folder_is_refused_by_name(changes, model, tmp_path):
    run = small.run(small.rewritten(model("z_image"), tmp_path, "model_index.json", **changes))
    for name in changes:
        (tmp_path / "small-z_image" / name).mkdir()
    with pytest.raises(ModelError, match=rf"model_index\.json has {name}, which a ZImagePipeline does not read"):
        session.check_steps(run)  # before anything is loaded
