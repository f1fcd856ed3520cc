"""The command line: bad input is one message and exit status 1, before any model is loaded and without a trace left."""

import json
import shlex
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from PIL import Image
from pyarrow import parquet

from pcpo_ray import config
from pcpo_ray.commands import session
from pcpo_ray.config import files
from pcpo_ray.runs import checkpoints
from tests.support import ROOT, small

REWARDS = """
class Silent:
    pass

class Narrow:
    def score(self, images):
        return [0.0] * len(images)
"""

BAD = {
    "sampling.stpes=3": ["sampling.stpes", "did you mean 'steps'?"],
    "objective.clip_rnage=1": ["objective.clip_rnage", "did you mean 'clip_range'?"],
    "steps=several": ["steps", "got 'several'", "integer"],
    "optimizer.learning_rate=-1": ["optimizer.learning_rate", "got -1", "number > 0"],
    "rewards=[{kind: clip_scroe}]": ["rewards.0.kind", "did you mean 'clip_score'?"],
    "rewards=[{kind: 'mine:Silent'}]": ["mine:Silent", "method score(self, images, prompts)"],
    "rewards=[{kind: 'mine:Narrow'}]": ["mine:Narrow", "method score(self, images, prompts)"],
    "rewards=[{kind: 'absent:Reward'}]": [
        "rewards.0.kind: got 'absent:Reward'",
        "no module 'absent'",
        "importable package.module:name",
    ],
    "rewards=[{kind: clip_score, model: ViT-L-14, weights: no.pt}]": ["no CLIP weights of ViT-L-14 at", "no.pt"],
    "prompts={kind: file, path: absent.txt}": ["no prompt file at", "/absent.txt"],
    "prompts={kind: file, path: empty.txt}": ["empty.txt holds no prompts"],
    "prompts={kind: file, path: latin.txt}": ["latin.txt, line 1 cannot be read as UTF-8", "byte 3"],
    "evaluation.prompts={kind: file, path: empty.txt}": ["empty.txt holds no prompts"],
    "model.path=./absent/model": ["absent/model", "there is no such folder", "diffusers' format"],
    "model.path=shapes-ds": ["shapes-ds", "shapes-sd"],
    "sampling.steps=1001": ["sampling.steps is 1001", "1000"],
    "sampling.steps=1000": ["sampling.steps is 1000", "steps_offset is 1", "0 to 999"],
    "rollout.images=1": ["rollout.images is 1", "at least 2 images"],
    "credit.kind=proportionate": ["credit.kind", "proportionate", "reweight"],
    "steps": ["override 'steps'", "a.b.c=value"],
}


@pytest.mark.parametrize("override", BAD)
def test_bad_input_is_one_clear_message_and_leaves_nothing_behind(command, hollow, tmp_path, override):
    (tmp_path / "mine.py").write_text(REWARDS)
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    status, _, errors = command("train", hollow, override, "--local")
    assert status == 1
    assert errors.startswith("error: ")
    assert errors.count("error: ") == 1
    assert "Traceback" not in errors
    assert all(words in errors for words in BAD[override]), errors
    assert not (tmp_path / "runs").exists()


def test_all_that_is_missing_is_named_at_once_with_its_download(command, tmp_path):
    missing = ["model.path=./absent", "prompts=absent.txt", "evaluation.held_out=true", "evaluation.prompts=null"]
    status, _, errors = command("train", "sd15_pcpo_aesthetic_reweight", *missing, "--local")
    assert status == 1 and errors.startswith("error: 3 wrong\n")
    for words in (
        "there is no such folder",
        "no head of aesthetic at",
        "no model of aesthetic at",
        "no prompt file at",
    ):
        assert errors.count(words) == 1
    assert "fetch it with: hf download openai/clip-vit-large-patch14 --include '*.json'" in errors
    assert "--local-dir models/clip-vit-large-patch14\n" in errors and not (tmp_path / "runs").exists()


def test_a_reward_that_scores_nothing_ends_a_run_in_words_and_leaves_none(command, small_sd, tmp_path):
    (tmp_path / "mine.py").write_text(
        "class Nan:\n    def score(self, images, prompts):\n        return [float('nan')] * len(images)\n"
    )
    path = tmp_path / "small.yaml"
    path.write_text(files.dump(small.run(small_sd, steps=1)))
    for setting in ("rollout.reward_failures=3", "rollout.reward_failures=99"):
        status, _, errors = command("train", path, "rewards=mine:Nan", setting, "--local")
        assert status == 1 and " scores are not finite, such as nan; fix " in errors and "{" not in errors
        assert not (tmp_path / "runs" / "small").exists()
    assert "scored none of the first evaluation's" in errors


CONFIGS = {
    "folder": "folder is a folder; expected a config file, or a recipe's name. pcpo-ray init shapes_pcpo writes one",
    "with": "with is a folder; expected a config file, such as one of those in it: with/a.yaml",
    "empty.yaml": "empty.yaml is empty; expected keys such as name, model, rewards. pcpo-ray init shapes_pcpo",
    "list.yaml": "list.yaml holds a list; expected keys",
    "studies/aa": "is a study, and no run's config; compare its arms with: pcpo-ray study studies/aa",
}


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_no_config_is_told_what_it_is(command, tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "with").mkdir()
    (tmp_path / "with" / "a.yaml").touch()
    (tmp_path / "empty.yaml").touch()
    (tmp_path / "list.yaml").write_text("[1]")
    status, _, errors = command("train", name, "--local")
    assert status == 1 and CONFIGS[name] in errors
    status, _, errors = command("study", "shapes_pcpo")
    assert status == 1 and "is a run's config, and no study; train it with: pcpo-ray train" in errors


def test_a_config_file_that_is_not_there_is_named(command):
    hint = "pcpo-ray recipes lists those that come along"
    assert command("train", "absent.yaml") == (1, "", f"error: no config file at absent.yaml; {hint}\n")


def test_a_run_folder_that_exists_is_left_as_it_is(command, hollow, tmp_path):
    folder = tmp_path / "runs" / "small"
    folder.mkdir(parents=True)
    (folder / "precious").touch()
    status, _, errors = command("train", hollow, "--local")
    assert status == 1
    assert "exists; continue it with --resume" in errors
    assert [path.name for path in folder.iterdir()] == ["precious"]


@pytest.mark.parametrize("override", ["seed=0", "trackers=[aim]"])
def test_a_start_that_fails_leaves_no_folder_so_it_works_later(command, hollow, tmp_path, override):
    status, _, errors = command("train", hollow, override, "--local")
    assert status == 1
    assert "cannot be loaded" in errors or "'aim' is not installed" in errors
    assert not (tmp_path / "runs" / "small").exists()


@pytest.mark.parametrize("order", [("evaluate",), ("report",), ("sample", "a red circle"), ("train",)])
def test_a_run_that_is_not_there_is_named(command, hollow, order):
    name, *rest = order
    arguments = (hollow, "--resume") if name == "train" else ("runs/small", *rest)
    status, _, errors = command(name, *arguments)
    assert status == 1
    assert errors.startswith("error: there is no run at runs/small")  # and nothing before: nothing was loaded


def test_a_run_without_a_checkpoint_cannot_be_sampled(command, hollow, tmp_path):
    (tmp_path / "runs" / "small").mkdir(parents=True)
    shutil.copy(hollow, tmp_path / "runs" / "small" / "config.yaml")
    status, _, errors = command("sample", "runs/small", "a red circle")
    assert status == 1
    assert "no whole checkpoint" in errors


def test_the_base_model_has_no_strengths(command, hollow, tmp_path):
    (tmp_path / "runs" / "small").mkdir(parents=True)
    shutil.copy(hollow, tmp_path / "runs" / "small" / "config.yaml")
    for options in (["--strength", "0.5"], ["--with", "runs/other=1"]):
        status, _, errors = command("sample", "runs/small", "a red circle", "--base", *options)
        assert status == 1 and "got --base, which is the model without adapters" in errors


def test_the_version_is_the_packages(command):
    from pcpo_ray import __version__

    assert command("--version") == (0, f"pcpo-ray {__version__}\n", "")


@pytest.mark.chaos
def test_ctrl_c_ends_a_run_with_a_checkpoint_and_the_command_that_goes_on(small_sd, tmp_path):
    path, folder = tmp_path / "small run.yaml", tmp_path / "my runs"
    path.write_text(files.dump(small.run(small_sd, steps=8, checkpoints__every=8)))
    words = ["train", str(path), f"rewards={small.slow(0.3)}", "--local", "--runs", str(folder)]
    run = subprocess.Popen(
        [sys.executable, "-m", "pcpo_ray.commands.app", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        said = []
        while not said or "step 2/8: " not in said[-1]:
            said.append(run.stdout.readline())
            assert said[-1], run.stderr.read()
        run.send_signal(signal.SIGINT)
        rest, errors = run.communicate(timeout=120)
    finally:
        run.kill()
    assert run.returncode == 130 and "Traceback" not in errors
    assert checkpoints.newest(folder / "small", pytest.fail) is not None
    program, *again = shlex.split(rest.partition("stopped; continue with: ")[2].splitlines()[0])
    assert program == "pcpo-ray" and again == [*words, "--resume"]
    done = subprocess.run(
        [sys.executable, "-m", "pcpo_ray.commands.app", *again],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0 and "resuming small after step" in done.stdout, done.stderr


def test_prompts_both_trained_and_evaluated_on_are_refused_or_named_so(command, small_sd, tmp_path):
    (tmp_path / "own.txt").write_text("".join(f"a cat on {n} mats\n" for n in range(8)))
    own = f"{{kind: file, path: {tmp_path}/own.txt}}"
    path = tmp_path / "small.yaml"
    path.write_text(files.dump(small.run(small_sd, steps=1, evaluation__count=6)))
    status, said, errors = command("train", path, f"prompts={own}", f"evaluation.prompts={own}", "--local")
    assert status == 1 and "8 of 8 evaluation prompts" in errors and not (tmp_path / "runs").exists()
    status, said, errors = command("train", path, f"prompts={own}", "evaluation.held_out=false", "--local")
    assert (status, errors) == (0, "")
    assert "evaluations: 6 of 8 training prompts" in said and "The reward of training prompts" in said
    page = (tmp_path / "runs" / "small" / "report.html").read_text()
    assert "held-out" not in said + page.lower()
    status, said, _ = command("evaluate", tmp_path / "runs" / "small", "--local")
    assert status == 0 and "step 1, 6 training prompts:" in said and "held-out" not in said
    (tmp_path / "own.txt").write_text("a dog\na fox\n")
    status, _, errors = command("evaluate", tmp_path / "runs" / "small", "--local")
    assert status == 1 and "own.txt is not the file that the run began with, and it says what is held out" in errors


def test_a_users_own_prompts_are_split_and_one_of_them_ends_no_run(command, small_sd, tmp_path):
    (tmp_path / "own.txt").write_text("a cat\na dog\n")
    path, own = tmp_path / "small.yaml", f"prompts={{kind: file, path: {tmp_path}/own.txt}}"
    path.write_text(files.dump(small.run(small_sd, rewards="[{kind: 'tests.support.custom:Praise'}]")))
    watched = "evaluation.rewards=[{kind: 'tests.support.custom:Spoilt'}]"
    strict = ("evaluation.every=1", "steps=3", "monitors.action=stop", "monitors.patience=1")
    status, said, errors = command("train", path, own, watched, *strict, "--local")
    assert (status, errors) == (0, "")
    assert f"training prompts: 1 of {tmp_path}/own.txt" in said and "evaluations: 1 of 1 held-out prompts" in said
    assert "on 1 prompt: no verdict" in said and "ALARM" not in said
    rows = [json.loads(line) for line in (tmp_path / "runs" / "small" / "metrics.jsonl").read_text().splitlines()]
    changes = [row["changes"]["reward"] for row in rows if row["kind"] == "evaluation" and row["step"]]
    assert len(changes) == 3 and all(change["low"] is None and change["high"] is None for change in changes)
    assert "Spoilt" in (tmp_path / "runs" / "small" / "report.html").read_text()


def test_a_reward_that_raises_ends_a_run_before_it_leaves_a_folder(command, small_sd, tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(files.dump(small.run(small_sd)))
    (tmp_path / "my_rewards.py").write_text(
        "class Boom:\n    def score(self, images, prompts):\n        return images.foo\n"
    )
    status, said, errors = command("train", path, "rewards=my_rewards:Boom", "--local")
    assert status == 1 and "AttributeError" in errors and f"({tmp_path}/my_rewards.py, line 3)" in errors
    assert "evaluating step 0" not in said and not (tmp_path / "runs" / "small").exists()
    status, said, _ = command("status", "small")
    assert status == 14 and "go on" not in said


def test_a_run_is_trained_resumed_past_a_bad_checkpoint_and_evaluated(command, small_sd, tmp_path, monkeypatch):
    path, folder = tmp_path / "small.yaml", tmp_path / "runs" / "small"
    markup = "[{kind: 'tests.support.small:Slow', label: '[/closed]'}]"  # to rich, the end of something
    path.write_text(files.dump(small.run(small_sd, evaluation__rewards=markup)))
    status, said, errors = command("train", path, "--local")
    assert (status, errors) == (0, "")
    assert "The held-out reward" in said
    assert (folder / "report.html").is_file()
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert (events[0]["kind"], events[0]["backend"]) == ("started", "in-process")
    assert f"torch {torch.__version__.partition('+')[0]}" in " ".join(events[0]["versions"])
    assert "in-process, " in (folder / "report.html").read_text()

    for table in ("scores.parquet", "evaluations.parquet"):  # no reward may have the name of a column of ours
        columns = parquet.read_table(sorted((folder / table).iterdir())[0]).column_names
        assert set(columns) - {"jpeg_compressibility", "[/closed]"} <= set(config.OUR_NAMES)

    cut = checkpoints.folder_for(folder, 2) / "trainable.safetensors"
    cut.write_bytes(cut.read_bytes()[:-10])
    status, said, errors = command("train", path, "steps=3", "--local", "--resume")
    assert (status, errors) == (0, "")
    assert "step-000002: trainable.safetensors is cut short or changed" in said
    assert "falling back to an older one" in said
    assert "resuming small after step 1" in said

    with monkeypatch.context() as patched:
        patched.setattr(session, "stages", lambda *arguments, **options: pytest.fail("workers are started"))
        status, said, errors = command("train", path, "steps=3", "--local", "--resume")
    assert (status, errors) == (0, "") and "has done all of its 3 steps: no worker is started" in said

    status, said, _ = command("sample", folder, "a red circle", "--images", 3, "--out", "drawn.png")
    assert status == 0
    with Image.open("drawn.png") as image:
        assert image.size[0] > 3 * 160  # small images are magnified
    status, said, _ = command("sample", folder, "a red circle", "--strength", "0,1", "--with", f"{folder}=0,1,2")
    assert status == 0 and "sample.png" in said
    with Image.open("sample.png") as image:
        assert image.size[0] > image.size[1]  # 2 strengths down, 3 across
    for asked, words in [
        ("runs/none=1", "there is no run at runs/none"),
        ("small", "expected a run and the strengths"),
    ]:
        status, _, errors = command("sample", folder, "a red circle", "--with", asked)
        assert status == 1 and errors.startswith("error: ") and words in errors
    drawn = (tmp_path / "sample.png").read_bytes()
    status, said, _ = command("sample", "small", "a red circle", "--images", 2, "--compare")  # by its name
    assert status == 0 and said.endswith(": sample-2.png\n") and (tmp_path / "sample-2.png").is_file()
    assert (tmp_path / "sample.png").read_bytes() == drawn
    status, said, _ = command("evaluate", "small", "--local", "--json")
    found = json.loads(said)
    assert (status, found["run"], found["step"], found["prompts"]) == (0, "small", 3, 2)
    assert set(found["rewards"]["jpeg_compressibility"]) == {"mean", "low", "high"}
    status, said, _ = command("evaluate", folder, "--local")
    assert status == 0 and "note: " not in said
    assert "small, step 3, 2 held-out prompts" in said
    assert "jpeg_compressibility: " in said and "  [/closed]: " in said
    other = shutil.copytree(small_sd, tmp_path / "other-sd")
    (other / "vae" / "config.json").write_text((other / "vae" / "config.json").read_text() + " ")
    status, said, _ = command("evaluate", folder, "evaluation.count=3", f"model.path={other}", "--local")
    assert status == 0 and "small, step 3, 3 held-out prompts" in said
    assert f"note: model.path: {other}/vae/config.json is not the file that the run began with" in said
    status, _, errors = command("evaluate", folder, "evaluation.cuont=3", "--local")
    assert status == 1 and "did you mean 'count'?" in errors
