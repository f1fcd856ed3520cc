"""A relative path means the same in every process."""

import dataclasses
import os
from pathlib import Path
from typing import get_type_hints

import pytest

from pcpo_ray import config
from pcpo_ray.commands import opening, resuming
from pcpo_ray.commands.evaluate_options import read_to_evaluate
from pcpo_ray.config import files, paths
from pcpo_ray.config.base import PathMark, path_marks
from pcpo_ray.errors import RunError
from pcpo_ray.runs import configs
from pcpo_ray.runs.folder import LocalFolder
from pcpo_ray.training import inputs
from pcpo_ray.training.recorder import Recorder
from tests.support import ROOT, small

PATHS = {
    ("Model", "single_file"), ("Model", "text_cache"), ("Lora", "start"),
    ("ClipScore", "weights"), ("Diversity", "weights"), ("Aesthetic", "head"), ("Aesthetic", "weights"),
    ("PickScore", "model"), ("PickScore", "processor"), ("Hps", "weights"), ("ClipFeatures", "weights"),
    ("InceptionFeatures", "weights"), ("DinoFeatures", "model"), ("ImagesReference", "path"), ("Quality", "cache"),
    ("Lpips", "weights"),
}  # fmt: skip
LISTS_OR_PATHS = {("PromptFile", "path")}
HUB_IDS_OR_PATHS = {("Model", "path")}
NAMES_OR_PATHS = {
    ("ClipScore", "model"), ("Diversity", "model"), ("Aesthetic", "model"), ("ClipFeatures", "model"),
    ("Judge", "template"),
}  # fmt: skip
NO_PATHS = {
    ("Run", "name"), ("Model", "variant"), ("Model", "denoiser"), ("PromptFile", "column"), ("Hps", "architecture"),
    ("Remote", "url"), ("Remote", "label"), ("Remote", "token"), ("CustomReward", "kind"), ("CustomReward", "label"),
    ("Role", "accelerator"), ("LearnerRole", "accelerator"), ("CustomCredit", "kind"), ("CustomAdvantage", "kind"),
    ("CustomObjective", "kind"), ("CustomPrompts", "kind"), ("Optimizer", "kind"), ("Sampling", "negative_prompt"),
    ("Notify", "url_env"), ("Judge", "url"), ("Judge", "model"), ("Judge", "label"), ("Judge", "key"),
}  # fmt: skip
"""Keys that hold any text, by config class and name."""


def texts():
    """Yield every key of a config class whose value may be any text."""
    for cls in vars(config).values():
        if isinstance(cls, type) and dataclasses.is_dataclass(cls) and cls not in NO_CONFIGS:
            own = {field.name for field in dataclasses.fields(cls)}
            for name, kind in get_type_hints(cls).items():
                if name in own and kind in (str, str | None, config.Label, config.Label | None):
                    yield cls, name


NO_CONFIGS = (config.Backbone, config.ClipModel, config.Scale)


def test_every_key_with_a_text_is_marked_as_a_path_or_is_known_to_be_none():
    marked = {(cls, name): path_marks(cls).get(name) for cls, name in texts()}
    found = {
        mark: {(cls.__name__, name) for (cls, name), one in marked.items() if one == mark}
        for mark in {*marked.values()}
    }
    assert found == {
        PathMark(): PATHS,
        PathMark(or_name=True): NAMES_OR_PATHS,
        PathMark(or_list=True): LISTS_OR_PATHS,
        PathMark(or_name=True, or_hub=True): HUB_IDS_OR_PATHS,
        None: NO_PATHS,
    }


def test_paths_are_made_absolute_and_names_of_models_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    rewards = "[{kind: clip_score}, {kind: hps_v2.1, weights: ../hps.pt}, {kind: 'mine:Judge', options: {file: a/b}}]"
    run = small.run(
        Path("models/sd"), prompts="{kind: file, path: ~/p.txt}", model__text_cache="cache", rewards=rewards
    )
    assert paths.absolute(run).model.path == "models/sd"  # nothing is there: it may be an id of the hub
    (tmp_path / "models" / "sd").mkdir(parents=True)
    found = paths.absolute(run)
    assert (found.model.path, found.prompts.path) == (f"{tmp_path}/models/sd", "/home/me/p.txt")
    assert (found.model.text_cache, found.rewards[1].weights) == (f"{tmp_path}/cache", str(tmp_path.parent / "hps.pt"))
    assert found.rewards[0].model == "shapes-clip" and found.rewards[2] == run.rewards[2]
    assert paths.absolute(found) == found
    shipped = small.run(Path("shapes-sd"))
    assert paths.absolute(shipped) == shipped
    hub = small.run(Path("owner/sd"), prompts="{kind: file, path: animals}")
    assert paths.absolute(hub) == hub
    (tmp_path / "shapes-sd").mkdir()
    assert paths.absolute(shipped).model.path == f"{tmp_path}/shapes-sd"


def test_paths_in_a_job_stay_relative_to_the_submitted_folder(tmp_path, monkeypatch):
    folder = tmp_path / paths.JOB / "_ray_pkg_1"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    run = small.run(Path("models/sd"))
    assert paths.absolute(run) is run


def test_a_run_goes_on_from_another_folder_and_from_moved_files(small_sd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "own.txt").write_text("".join(f"a cat on {n} mats\n" for n in range(99)))
    monkeypatch.chdir(tmp_path / "here")
    asked = small.run(Path(os.path.relpath(small_sd)), prompts="{kind: file, path: own.txt}")
    run = paths.absolute(asked)
    Recorder.create(LocalFolder(local=tmp_path / "run"), run, began=inputs.digests(inputs.of_run(run))).close()
    monkeypatch.chdir(tmp_path)
    assert configs.read(tmp_path / "run") == run  # whose files are found
    inputs.of_run(configs.read(tmp_path / "run"))
    monkeypatch.chdir(tmp_path / "there")
    moved = paths.absolute(dataclasses.replace(asked, model=run.model))
    assert moved.prompts.path != run.prompts.path
    assert not any(dataclasses.astuple(opening.changes(tmp_path / "run", moved, free=resuming.FREE_TO_CHANGE)))
    (tmp_path / "there" / "own.txt").write_text("a dog\n" * 99)
    with pytest.raises(RunError, match=r"there/own.txt is not the file that the run began with"):
        opening.resume(LocalFolder(local=tmp_path / "run"), moved, print)


def test_a_path_in_an_override_is_relative_to_where_it_is_given(small_sd, tmp_path, monkeypatch):
    Recorder.create(LocalFolder(local=tmp_path / "run"), small.run(small_sd)).close()
    monkeypatch.chdir(tmp_path)
    found = read_to_evaluate(tmp_path / "run", ["evaluation.prompts={kind: file, path: own.txt}"])
    assert found.evaluation.prompts.path == f"{tmp_path}/own.txt"


def test_reading_a_recipe_leaves_its_paths_as_written():
    """Only commands make paths absolute: what compares configs sees them as they are written."""
    recipe = files.load(ROOT / "configs" / "sd15_pcpo_hpsv21.yaml")
    assert not Path(recipe.model.path).is_absolute()
