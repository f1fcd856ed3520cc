"""Models that are not here: planned by published sizes where these are known, and named where not."""

import shutil
from pathlib import Path

import pytest

from pcpo_ray import models
from pcpo_ray.commands import plan
from pcpo_ray.commands.plan import stand_ins
from pcpo_ray.commands.plan.roles import Memory
from pcpo_ray.config import files
from pcpo_ray.errors import ModelError
from tests.support import small


@pytest.fixture
def known(small_sd, monkeypatch, tmp_path):
    """A model whose sizes are known and that is not here."""
    monkeypatch.chdir(tmp_path)
    published = stand_ins.Published("acme/small-sd", lambda folder: small.without_weights(small_sd, folder))
    monkeypatch.setattr(stand_ins, "MODELS", {"small-sd": ("stable_diffusion", published)})
    return small.run("acme/small-sd")


@pytest.mark.parametrize("path", ["acme/small-sd", "models/small-sd", "/data/small-sd"])
def test_a_model_that_is_not_here_is_planned_by_its_published_sizes(known, path, small_sd):
    run = files.changed(known, [f"model.path={path}"])
    with stand_ins.sized(run) as sized:
        planned = sized.named(plan.plan(sized.run))
        assert plan.plan(small.run(small_sd)).roles == planned.roles
        (note,) = sized.notes
        folder = Path(sized.run.model.path)
    assert note.startswith(f"{path} is not here: planned by the published sizes of acme/small-sd. For its own: hf")
    assert "--include '*.json'" in note and "safetensors" not in note and not folder.exists()


def test_the_command_says_what_it_plans_by(known, command, tmp_path):
    (tmp_path / "small.yaml").write_text(files.dump(known))
    status, said, errors = command("plan", "small.yaml")
    assert (status, errors) == (0, "")
    assert "acme/small-sd is not here: planned by the published sizes" in said and "learner on CPU" in said
    status, _, errors = command("plan", "small.yaml", "--probe")
    assert status == 1 and "hf download acme/small-sd" in errors  # a probe needs the weights themselves


def test_a_model_that_is_here_is_planned_as_it_is(known, small_sd, tmp_path):
    shutil.copytree(small_sd, tmp_path / "acme" / "small-sd")
    with stand_ins.sized(known) as sized:
        assert sized == stand_ins.Sized(run=known)
    (tmp_path / "acme" / "small-sd" / "unet" / "config.json").unlink()
    shutil.rmtree(tmp_path / "acme" / "small-sd" / "vae")
    with pytest.raises(ModelError, match="has no vae"), stand_ins.sized(known):
        pass


@pytest.mark.parametrize("changes", [["model.path=acme/other"], ["model.kind=sdxl"]])
def test_a_model_of_unknown_sizes_is_named_with_how_to_fetch_its_settings(known, changes):
    run = files.changed(known, changes)
    fetch = r"hf download acme/.* --include '\*\.jinja' \("
    with pytest.raises(ModelError, match=fetch), stand_ins.sized(run):
        pass


def test_a_reward_that_is_not_here_keeps_its_name_in_the_plan(known):
    reward = "rewards=[{kind: pickscore, model: models/PickScore_v1}]"
    with stand_ins.sized(files.changed(known, [reward])) as sized:
        folder = sized.run.rewards[0].model
        assert sized.names == {folder: "models/PickScore_v1"} and (Path(folder) / "config.json").is_file()
        assert "models/PickScore_v1 is not here" in sized.notes[1]
        role = Memory(role="scorer", processes=1, gpus=1.0, held={folder: 1}, phases={f"embedding with {folder}": 2})
        named = sized.named(plan.Plan(run=known, roles=(role,), store=plan.roles.store(sized.run)))
    assert named.roles[0].held == {"models/PickScore_v1": 1}
    assert named.roles[0].busiest == "embedding with models/PickScore_v1"


def test_the_recipes_models_are_those_whose_sizes_are_known():
    from pcpo_ray.config import recipes

    runs = [files.load(name) for name in recipes.names() if not name.startswith(("shapes_", "words_"))]
    for run in runs:
        kind, published = stand_ins.MODELS[Path(run.model.path).name]
        assert (kind, published.id) == (run.model.kind, run.model.path)
        asked = [getattr(reward, "model", None) for reward in run.rewards]
        assert all(Path(path).name in stand_ins.CLIPS for path in asked if path is not None)


def test_published_sizes_pass_for_a_model_of_the_kind(tmp_path):
    for number, (kind, published) in enumerate(stand_ins.MODELS.values()):
        family = {"stable_diffusion": "sd"}.get(kind, kind)
        model = small.run(published.write(tmp_path / f"{family}-{number}")).model
        assert models.folder_of(model, weights=False).name == f"{family}-{number}"
