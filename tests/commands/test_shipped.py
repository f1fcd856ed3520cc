"""pcpo-ray recipes, init and dashboards: what comes with the package, listed and written."""

import json

import pytest
import yaml

from pcpo_ray.commands import shipped
from pcpo_ray.commands.study import plan
from pcpo_ray.config import files, recipes
from tests.support import ROOT


def test_the_listing_names_every_recipe_and_fits_eighty_columns(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    status, said, errors = command("recipes")
    assert (status, errors) == (0, "")
    lines = said.splitlines()
    assert [line.split()[0] for line in lines[1 : 1 + len(recipes.names())]] == recipes.names()
    assert max(map(len, lines)) <= 80 and "…" not in said
    row = next(line for line in lines if line.startswith("sd15_pcpo_aesthetic_interpolate"))
    assert row.split()[1:] == ["SD-v1-5", "aesthetic", "interpolate", "6", "yes"]
    assert next(line for line in lines if line.startswith("shapes_pcpo ")).split()[4:] == ["0", "no"]
    assert "studies/diffusion" in said and "animals, scenes" in said


def test_a_recipe_is_written_to_be_edited_and_never_over_another_file(command, tmp_path):
    status, said, errors = command("init", "sd15_pcpo_hpsv21")
    assert (status, errors) == (0, "")
    assert "hf download stable-diffusion-v1-5/stable-diffusion-v1-5" in said
    switches = "model.gradient_checkpointing=true model.vae_slicing=true"  # those of the recipe's head for 24 GB
    assert said.endswith(
        f"  pcpo-ray plan sd15_pcpo_hpsv21.yaml --gpu 4090 --local\n"
        f"  pcpo-ray train sd15_pcpo_hpsv21.yaml {switches} --local\n"
    )
    written = tmp_path / "sd15_pcpo_hpsv21.yaml"
    assert files.load(written) == files.load("sd15_pcpo_hpsv21")
    assert command("init", "sd15_pcpo_hpsv21")[0] == 0  # the same again changes nothing
    written.write_text("mine: true\n")
    status, _, errors = command("init", "sd15_pcpo_hpsv21")
    assert status == 1 and "sd15_pcpo_hpsv21.yaml is there already, with other content" in errors
    assert "give another name, such as sd15_pcpo_hpsv21-2.yaml, or delete it" in errors
    assert written.read_text() == "mine: true\n"


def test_a_recipe_without_a_gpu_is_written_with_its_command_alone(command):
    assert command("init", "shapes_pcpo", "a.yaml")[1] == "wrote a.yaml\n  pcpo-ray train a.yaml --local\n"
    assert recipes.on_one_card("flux_pcpo_hpsv21") == ("A100-80", ["model.vae_slicing=true"])
    assert recipes.on_one_card("qwen_pcpo_ocr") == ("", [])


def test_a_study_is_written_so_that_it_can_be_read_elsewhere(command, tmp_path):
    status, said, _ = command("init", "studies/diffusion", "here.yaml")
    assert status == 0 and "pcpo-ray study here.yaml --local" in said
    assert plan.load(tmp_path / "here.yaml") == plan.load(ROOT / "configs" / "studies" / "diffusion.yaml")


@pytest.mark.parametrize("name", ["shapes_pcop", "configs/shapes_pcpo.yaml", "shapes_pcpo.yaml"])
def test_a_recipe_that_is_none_points_to_the_nearest(command, name):
    assert command("init", name)[::2] == (
        1,
        f"error: no recipe is called {name!r} (did you mean 'shapes_pcpo'?); pcpo-ray recipes lists them\n",
    )


def test_a_models_name_points_to_its_recipes(command):
    meant = "(did you mean flux_dancegrpo_hpsv21 or flux_mixgrpo_hpsv21 or flux_pcpo_hpsv21?)"
    assert meant in command("init", "flux")[2] and meant in command("train", "flux", "--local")[2]


def test_dashboards_and_rules_are_those_of_the_repository(command, tmp_path):
    status, said, errors = command("dashboards", "monitoring")
    assert (status, errors) == (0, "")
    made = {path.relative_to(tmp_path / "monitoring") for path in (tmp_path / "monitoring").rglob("*.*")}
    assert {str(path) for path in made} >= {"grafana/dashboards/training.json", "prometheus/rules.yaml"}
    for path in made:
        assert str(path) in said
        text = (tmp_path / "monitoring" / path).read_text()
        assert text == (ROOT / "deploy" / path).read_text()
        if path.suffix in (".json", ".yaml"):
            (json.loads if path.suffix == ".json" else yaml.safe_load)(text)


def test_a_dashboard_that_was_edited_stays_and_the_others_are_written(command, tmp_path):
    rules = tmp_path / "monitoring" / "prometheus" / "rules.yaml"
    rules.parent.mkdir(parents=True)
    rules.write_text("groups: []\n")
    status, said, errors = command("dashboards", "monitoring")
    assert status == 1 and rules.read_text() == "groups: []\n"
    assert (tmp_path / "monitoring" / "grafana" / "dashboards" / "training.json").is_file()
    assert "monitoring/prometheus/rules.yaml (left as it is here)" in said
    assert "rules.yaml; to get those of this version, move them away" in errors
    rules.rename(rules.with_suffix(".mine"))
    assert command("dashboards", "monitoring")[0] == 0 and rules.read_text() != "groups: []\n"


def test_the_gpus_of_a_recipe_are_those_of_all_its_workers():
    found = {row.name: row for row in shipped.rows()}
    assert (found["flux_pcpo_hpsv21"].gpus, found["shapes_ddpo"].gpus) == ("8", "0")
