"""Recipes by name: found wherever they lie, listed, and headed by commands that are legal."""

import shlex

import pytest

from pcpo_ray.config import files, paths, recipes
from pcpo_ray.data import prompts
from pcpo_ray.errors import ConfigError
from pcpo_ray.models import hub
from tests.support import ROOT

OLDER = ("stable_diffusion", "sd3", "flux")
"""Kinds whose recipes have a link to a licence only where a model is gated, and say nothing of eight cards."""

REAL = [name for name in recipes.names() if not name.startswith(("shapes_", "words_"))]


def test_a_recipe_is_a_config_by_its_name_and_its_path(monkeypatch):
    assert {"shapes_pcpo", "sd15_pcpo_hpsv21"} <= {*recipes.names()} and "studies/diffusion" in recipes.studies()
    by_path = files.load(ROOT / "configs" / "shapes_pcpo.yaml", ["steps=3"])
    monkeypatch.chdir("/")
    assert files.load("shapes_pcpo", ["steps=3"]) == by_path


def test_a_file_of_that_name_goes_before_the_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shapes_pcpo").write_text("name: mine\n")
    assert files.read("shapes_pcpo") == {"name": "mine"}


def test_an_installation_has_recipes_of_its_own(tmp_path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "other.yaml").write_text("name: other\n")
    monkeypatch.setattr(recipes, "PACKAGE", tmp_path)
    recipes.folder.cache_clear()
    try:
        assert recipes.names() == ["other"] and files.read("other") == {"name": "other"}
    finally:
        recipes.folder.cache_clear()


@pytest.mark.parametrize(
    ("asked", "hint"),
    [
        ("shapes_pcpo.yaml", "; 'shapes_pcpo' is a recipe that comes along: give that name, or write its file with"),
        ("configs/shapes_pcpo.yml", "pcpo-ray init shapes_pcpo"),
        ("diffusion", "'studies/diffusion' is a recipe"),
        ("shapes_pcop", " (did you mean 'shapes_pcpo'?)"),
        ("a/long/way/from/here/shapes_pcop.yaml", " (did you mean 'shapes_pcpo'?)"),
        ("mien.yaml", " (did you mean 'mine.yaml'?)"),
        ("quite/different", "; pcpo-ray recipes lists those that come along"),
    ],
)
def test_a_config_that_is_not_there_points_to_what_was_meant(asked, hint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").touch()
    with pytest.raises(ConfigError) as caught:
        files.load(asked)
    assert str(caught.value).startswith(f"no config file at {asked}") and hint in str(caught.value)


def test_a_list_of_prompts_comes_along_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert recipes.prompt_lists() == ["animals", "scenes"]
    for name, count in (("animals", 45), ("scenes", 64)):
        run = paths.absolute(files.load("shapes_pcpo", [f"prompts={{kind: file, path: {name}}}"]))
        found = prompts.load(run.prompts, seed=0)
        assert run.prompts.path == name and len(set(found.texts)) == len(found) == count
    wrong = files.load("shapes_pcpo", ["prompts={kind: file, path: animal}"])
    with pytest.raises(ConfigError, match=r"got the list of prompts 'animal'; expected .*: animals, scenes"):
        prompts.load(wrong.prompts, seed=0)
    (tmp_path / "animals").mkdir()
    assert paths.absolute(run.prompts).path == "scenes"


@pytest.mark.parametrize("name", REAL)
def test_a_recipe_of_a_real_model_says_how_to_fetch_it_and_what_fits(name):
    run, commands = files.load(name), recipes.commands(name)
    assert recipes.downloads(name)[0] == hub.command(run.model.path)
    fetched = {words[2]: words for words in commands if words[0] == "hf"}
    named = [run.model.path, *(getattr(reward, "weights", None) for reward in run.rewards)]
    named += [getattr(reward, key, None) for reward in run.rewards for key in ("head", "model", "processor")]
    text = " ".join(shlex.join(words) for words in fetched.values())
    assert all(path.removeprefix("models/") in text for path in named if path is not None)
    trains = [words for words in commands if words[:2] == ["pcpo-ray", "train"]]
    assert all(words[2] == name for words in trains)
    assert trains or recipes.text(name).count("it does not fit") == 2
    for words in trains:
        workers = files.load(name, words[3:]).workers
        shares = (workers.samplers.gpus, workers.scorers.gpus, workers.learner.gpus)
        assert workers.samplers.workers == workers.learner.ranks == 1 and 0 < sum(shares) <= 1
    if "scenes" in recipes.text(name):
        tried = files.load(name, ["prompts={kind: file, path: scenes}", "evaluation.prompts=null"])
        assert [len(part) for part in prompts.sources(tried)] == [32, 32]
    head = (ROOT / "configs" / f"{name}.yaml").read_text().split("\nname:")[0]
    assert "24 GB card" in head and "80 GB card" in head and "plan" in head
    assert run.model.kind in OLDER or ("licence" in head.lower() and "eight 80 GB cards" in head)


def test_a_study_written_elsewhere_has_its_base_by_name():
    assert "\nbase: shapes_ddpo\n" in recipes.text("studies/diffusion")
    assert recipes.text("shapes_pcpo") == (ROOT / "configs" / "shapes_pcpo.yaml").read_text()


def test_a_recipe_of_pcpo_on_an_embedded_model_has_a_baseline():
    embedded = [name for name in recipes.names() if name not in REAL]
    found = recipes.BASELINES
    assert {*found} == {name for name in embedded if "pcpo" in name} and {*found.values()} == {*embedded} - {*found}
    for name, other in found.items():
        one, base = files.load(name), files.load(other)
        assert f"the baseline of {name}.yaml" in recipes.text(other).partition("\n")[0]
        assert (one.model, one.prompts, one.rewards, one.evaluation) == (
            *(base.model, base.prompts, base.rewards, base.evaluation),
        )
