"""Reference curves: made of a recipe's whole runs, and refused by name where they cannot be."""

import math
import re
import subprocess
from pathlib import Path

import pytest

from pcpo_ray.commands.report import reference_curves as shipped
from pcpo_ray.commands.study import plan, reference_curves
from pcpo_ray.config import files, recipes
from pcpo_ray.errors import ConfigError, StudyError
from pcpo_ray.runs.folder import INPUTS
from pcpo_ray.training import inputs
from tests.support import ROOT, stored
from tests.support.part import MORE

NAMES = ("shapes_small", "shapes_plain")
SEEDS = (1, 2, 3)


@pytest.fixture
def small_recipes(tmp_path, monkeypatch):
    """Two small recipes in place of the package's, and no process that a test could start."""
    (tmp_path / "recipes").mkdir()
    stored.recipes_in(tmp_path / "recipes", monkeypatch)
    monkeypatch.setattr(subprocess, "Popen", None)


def whole(runs, name, curve, *, seeds=SEEDS):
    """All runs of a recipe's reference curves, as training would leave them; returns their study and folder."""
    study = reference_curves.study_of(name, seeds)
    folder = runs / "references" / name
    stored.store(folder, plan.main_runs(study, {}), curve)
    run = files.load(name)
    for path in folder.iterdir():
        (path / INPUTS).write_text(inputs.dump(inputs.digests(inputs.of_run(run))))
    return study, folder


def by_seed(planned, step):
    return 0.5 + planned.seed / 100 + step / 10


def test_whole_runs_become_a_file_a_recipe_and_the_commit_is_said(command, small_recipes, tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "curves")
    for name in NAMES:
        whole(tmp_path / "runs", name, by_seed)
    words = ("--reference", *NAMES, "--seeds", "1,2,3", "--local", "--runs", tmp_path / "runs")
    status, said, errors = command("study", *words)
    assert status == 0, errors
    assert "shapes_small: 3 seeds, " in said and "3 of 3 runs are there already" in said
    assert "3 seeds of shapes_small, beside its baseline shapes_plain: in 95 of 100 further runs" in said
    assert "the reward changes by +0.4 to +0.4 until step 4; 3 rewards at 3 evaluations" in said
    assert "git add" in said and all(f"{name}.json" in said.split("git add")[1] for name in NAMES)
    found = shipped.known()
    assert {*found} == {*NAMES} and found["shapes_plain"].baseline is None
    one = found["shapes_small"]
    assert (one.baseline, one.seeds, one.steps) == ("shapes_plain", SEEDS, stored.EVALUATED)
    for step, row in zip(one.steps, one.rewards["reward"], strict=True):
        assert row == pytest.approx([0.5 + seed / 100 + step / 10 for seed in SEEDS])
    assert one.rewards["shapes_oracle"][0] == pytest.approx([0.49, 0.48, 0.47])
    assert {*one.inputs} == {"model.path", "rewards.0.model"}
    assert one.surroundings["versions"] == (", ".join(stored.VERSIONS),) and one.surroundings["device"] == ("CPU",)
    assert one.run == files.load("shapes_small")


def test_a_file_of_curves_is_read_as_it_was_written(small_recipes, tmp_path):
    found = reference_curves.curves(*whole(tmp_path, "shapes_small", by_seed))
    text = shipped.dumped(found)
    (tmp_path / "x.json").write_text(text)
    assert shipped.read(tmp_path / "x.json") == found
    assert "[1, 2, 3]" in text and str(tmp_path) not in text


def test_curves_are_written_again_from_runs_alone(command, small_recipes, tmp_path):
    whole(tmp_path, "shapes_small", by_seed)
    words = ("--reference", "shapes_small", "--seeds", "1,2,3", "--runs", tmp_path, "--report-only")
    status, said, errors = command("study", *words, "--out", tmp_path / "out")
    assert status == 0 and "git add" not in said, errors
    assert shipped.read(tmp_path / "out" / "shapes_small.json").seeds == SEEDS
    status, _, errors = command("study", *words[:3], "1,2,3,4", *words[4:], "--out", tmp_path / "out")
    assert status == 1 and "1 of 4 runs are missing or unfinished" in errors and "reference seed 4" in errors


def test_a_run_without_a_score_gives_no_curves(small_recipes, tmp_path):
    there = whole(tmp_path, "shapes_small", lambda planned, step: math.nan if planned.seed == 2 and step else 0.5)
    with pytest.raises(StudyError, match=r"reward at seed 2 has no score at some evaluation: \[0.5, nan, nan\]"):
        reference_curves.curves(*there)


@pytest.mark.parametrize(
    "text, words",
    [
        ("1,2", "got 2; expected at least 3, as in --seeds 1,2,3,4,5"),
        ("1,2,2", "names a seed twice"),
        ("1,2,x", "expected whole numbers from 0, as in --seeds 1,2,3,4,5"),
        ("", "expected whole numbers from 0"),
    ],
)
def test_seeds_that_make_no_band_are_refused(text, words):
    with pytest.raises(ConfigError) as caught:
        reference_curves.seeds_in(text)
    assert words in str(caught.value)


def test_seeds_of_curves_are_not_those_of_their_recipes():
    seeds = reference_curves.seeds_in(reference_curves.SEEDS)
    assert len(seeds) == 5 and not {files.load(name).seed for name in recipes.names()} & {*seeds}


@pytest.mark.parametrize(
    "words, said",
    [
        (("--reference", "shapes_pcop"), "no recipe of that name (did you mean 'shapes_pcpo'?)"),
        (("--reference", "shapes_pcpo", "sd15_pcpo_hpsv21"), "does not come with the package"),
        (("--reference", "shapes_pcpo", "--seeds", "4,5"), "got 2; expected at least 3"),
        (("studies/aa", "--seeds", "1,2,3"), "--seeds or --out without --reference"),
        (("studies/aa", "--out", "x"), "--seeds or --out without --reference"),
    ],
)
def test_what_cannot_have_curves_is_said_before_anything_begins(command, tmp_path, words, said):
    status, _, errors = command("study", *words, "--local", "--runs", tmp_path / "runs")
    assert status == 1 and said in errors and errors.count("error: ") == 1
    assert not (tmp_path / "runs").exists()


def test_an_installation_is_told_where_curves_may_go(monkeypatch, tmp_path):
    assert reference_curves.place(None) == ROOT / "pcpo_ray" / "commands" / "report" / "curves"
    monkeypatch.setattr(recipes, "PACKAGE", tmp_path / "site-packages" / "pcpo_ray")
    with pytest.raises(ConfigError, match=r"is an installation.*--out curves"):
        reference_curves.place(None)
    assert reference_curves.place(Path("there")) == Path("there")


def test_a_recipe_that_changed_since_has_its_runs_refused(command, small_recipes, tmp_path):
    whole(tmp_path, "shapes_small", by_seed)
    path = recipes.folder() / "shapes_small.yaml"
    path.write_text(path.read_text() + "optimizer: {learning_rate: 1.0e-3}\n")
    words = ("--reference", "shapes_small", "--seeds", "1,2,3", "--runs", tmp_path, "--local", "--out", tmp_path)
    status, _, errors = command("study", *words)
    assert status == 1 and "has 3 runs of other arms" in errors and "optimizer.learning_rate" in errors


@MORE
@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_a_trained_run_is_drawn_over_curves_that_were_trained(command, tmp_path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    stored.recipes_in(tmp_path / "recipes", monkeypatch)
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "curves")
    runs = ("--local", "--runs", tmp_path / "runs")
    status, said, errors = command("study", "--reference", "shapes_small", "--seeds", "1,2,3", *runs)
    assert status == 0 and "3/3 shapes_small-reference-seed" in said, errors
    one = shipped.known()["shapes_small"]
    assert {*one.rewards} == {"reward", "clip_score", "shapes_oracle"} and one.steps == stored.EVALUATED
    assert all(len(set(row)) == 3 for row in one.rewards["reward"])  # seeds differ, or a band would say nothing
    assert "torch" in one.surroundings["versions"][0]
    assert {"model.path", "rewards.0.model"} <= {*one.inputs} and str(tmp_path) not in shipped.dumped(one)
    status, said, errors = command("train", "shapes_small", *runs, "steps=2")
    words = " ".join(said.split())
    assert status == 0 and re.search(
        r"Beside other seeds, the change of the held-out reward is \w+ the band of 3 seeds", words
    ), errors
    page = (tmp_path / "runs" / "shapes-small" / "report.html").read_text(encoding="utf-8")
    assert "recipe, 3 seeds" in page and "No reference band" not in page
