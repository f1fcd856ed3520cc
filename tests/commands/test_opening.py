"""A run that is continued: what may have changed meanwhile, and what is said."""

import json
import shutil

import pytest

from pcpo_ray.commands import opening, resuming
from pcpo_ray.errors import CheckpointError, RunError
from pcpo_ray.runs import configs, records
from pcpo_ray.runs.folder import LocalFolder
from pcpo_ray.training import inputs
from pcpo_ray.training.recorder import Recorder
from tests.support import small
from tests.support.running import go, saved


def begun(folder, run):
    return Recorder.create(LocalFolder(local=folder), run, began=inputs.digests(inputs.of_run(run)))


def test_what_is_not_there_to_resume_is_said(small_sd, tmp_path):
    with pytest.raises(RunError, match=r"no run at .*nothing to resume; leave out --resume"):
        opening.resume(LocalFolder(local=tmp_path / "nothing"), small.run(small_sd), pytest.fail)


def test_a_run_resumes_from_the_newest_whole_checkpoint_and_says_so(small_sd, tmp_path):
    run = small.run(small_sd)
    begun(tmp_path / "run", run)
    older, newer = saved(tmp_path / "run", 1), saved(tmp_path / "run", 2)
    (newer / "trainable.safetensors").write_bytes((newer / "trainable.safetensors").read_bytes()[:-1])
    said = []
    _, found = opening.resume(LocalFolder(local=tmp_path / "run"), run, said.append)
    assert older.name == "step-000001" and found == 1
    assert [("step-000002" in line, "falling back" in line) for line in said] == [(True, True)]


def test_a_run_that_has_done_more_steps_than_asked_for_is_left_as_it_is(small_sd, tmp_path):
    begun(tmp_path / "run", small.run(small_sd, steps=4))
    saved(tmp_path / "run", 4)
    kept = (tmp_path / "run" / "config.yaml").read_bytes()
    with pytest.raises(RunError, match=r"has done 4 steps, and steps is 3: .* as in steps=7"):
        opening.resume(LocalFolder(local=tmp_path / "run"), small.run(small_sd, steps=3), pytest.fail)
    assert (tmp_path / "run" / "config.yaml").read_bytes() == kept
    assert opening.resume(LocalFolder(local=tmp_path / "run"), small.run(small_sd, steps=4), lambda line: None)[1] == 4


def test_a_run_without_a_checkpoint_starts_over_and_says_so(small_sd, tmp_path):
    run = small.run(small_sd)
    begun(tmp_path / "run", run)
    said = []
    assert opening.resume(LocalFolder(local=tmp_path / "run"), run, said.append)[1] is None
    assert "starting from step 0" in said[0]
    with pytest.raises(RunError, match="no whole checkpoint"):
        records.newest_checkpoint(tmp_path / "run", pytest.fail)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, "seed 0 -> 1"),
        ({"optimizer__learning_rate": 1}, "optimizer.learning_rate 0.01 -> 1.0"),
        ({"credit": "{kind: released, w_star: 3}"}, "credit.kind 'reweight' -> 'released'"),
        ({"rewards": "[{kind: grain}]"}, "rewards.0.kind 'jpeg_compressibility' -> 'grain'"),
        (
            {"rewards": "[{kind: jpeg_compressibility}, {kind: grain}]"},
            "rewards [kind jpeg_compressibility] -> [kind jpeg_compressibility, kind grain]",
        ),
        ({"evaluation__quality": "{features: {kind: clip}}"}, "evaluation.quality null -> given"),
        ({"sampling__height": 32, "seed": 1}, "seed 0 -> 1; sampling.height 16 -> 32"),
        ({"seed": 1, "model__path": "elsewhere-sd"}, "seed 0 -> 1"),
    ],
)
def test_a_resumed_run_may_not_differ_in_what_made_its_past(small_sd, tmp_path, monkeypatch, changes, named):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(small_sd, "elsewhere-sd")
    begun(tmp_path / "run", small.run(small_sd))
    with pytest.raises(RunError) as caught:
        opening.resume(LocalFolder(local=tmp_path / "run"), small.run(small_sd, **changes), pytest.fail)
    assert str(caught.value) == (
        f"{tmp_path}/run was started with another config: {named}; put it back as it was, or start under another name"
    )


def test_a_resumed_run_finds_moved_files_and_remembers_their_place(small_sd, tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "prompts.txt").write_text("a cat\n")
    prompts = f"{{kind: file, path: {tmp_path}/old/prompts.txt}}"
    begun(tmp_path / "run", small.run(shutil.copytree(small_sd, tmp_path / "old" / "small-sd"), prompts=prompts))
    (tmp_path / "old").rename(tmp_path / "new")
    (tmp_path / "new" / "prompts.txt").rename(tmp_path / "new" / "texts.txt")
    moved = small.run(tmp_path / "new" / "small-sd", prompts=f"{{kind: file, path: {tmp_path}/new/texts.txt}}")
    opening.resume(LocalFolder(local=tmp_path / "run"), moved, lambda line: None)
    assert configs.read(tmp_path / "run") == moved
    opening.resume(LocalFolder(local=tmp_path / "run"), moved, lambda line: None)  # and again


def test_a_resumed_run_may_keep_what_it_caches_elsewhere(small_sd, tmp_path):
    quality = "evaluation__quality"
    begun(tmp_path / "run", small.run(small_sd, **{quality: "{features: {kind: clip}, cache: old}"}))
    run = small.run(small_sd, model__text_cache="texts", **{quality: "{features: {kind: clip}, cache: new}"})
    opening.resume(LocalFolder(local=tmp_path / "run"), run, lambda line: None)
    assert configs.read(tmp_path / "run") == run


@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("prompts.txt", "prompts.path"),
        ("held.txt", "evaluation.prompts.path"),
        ("small-sd/vae/config.json", "model.path"),
        ("small-sd/unet/diffusion_pytorch_model.safetensors", "model.path"),
        ("head.pth", "rewards.0.weights"),
    ],
)
@pytest.mark.parametrize("moved", [False, True])
def test_a_run_is_not_resumed_with_other_files_and_they_are_named(small_sd, tmp_path, file, key, moved):
    old, new = tmp_path / "old", tmp_path / ("new" if moved else "old")
    shutil.copytree(small_sd, old / "small-sd")
    for name in ("prompts.txt", "held.txt", "head.pth"):
        (old / name).write_text(f"a {name}\n")

    def asked(place):
        return small.run(
            place / "small-sd",
            prompts=f"{{kind: file, path: {place}/prompts.txt}}",
            evaluation__prompts=f"{{kind: file, path: {place}/held.txt}}",
            rewards=f"[{{kind: hps_v2.1, weights: {place}/head.pth}}]",
        )

    begun(tmp_path / "run", asked(old))
    old.rename(new)
    with (new / file).open("ab") as opened:
        opened.write(b" ")
    with pytest.raises(RunError) as caught:
        opening.resume(LocalFolder(local=tmp_path / "run"), asked(new), pytest.fail)
    assert str(caught.value) == (
        f"{tmp_path}/run was started with other files: {key}: {new / file} is not the file that the run began with; "
        "put it back as it was, or start under another name"
    )


def test_changed_code_is_said_and_recorded_and_another_class_refused(small_sd, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    code = "class {}:\n    def score(self, images, prompts):\n        return [0.0] * len(images)\n"
    (tmp_path / "mended.py").write_text(code.format("One") + code.format("Two"))
    run = small.run(small_sd, rewards="[{kind: 'mended:One'}]")
    begun(tmp_path / "run", run)
    (tmp_path / "mended.py").write_text(code.format("One") + "# mended\n" + code.format("Two"))
    said = []
    opening.resume(LocalFolder(local=tmp_path / "run"), run, said.append)
    changed = f"rewards.0.kind: {tmp_path}/mended.py is not the file that the run began with"
    assert f"{changed}; it goes on with it as it is now" in said
    (event,) = map(json.loads, (tmp_path / "run" / "events.jsonl").read_text().splitlines())
    assert (event["kind"], event["changed"]) == ("code_changed", [changed])
    with pytest.raises(RunError, match=r"another config: rewards\.0\.kind 'mended:One' -> 'mended:Two'"):
        opening.resume(
            LocalFolder(local=tmp_path / "run"), small.run(small_sd, rewards="[{kind: 'mended:Two'}]"), said.append
        )


def test_of_many_files_that_changed_some_are_named_and_the_rest_counted(small_sd, tmp_path):
    model = shutil.copytree(small_sd, tmp_path / "small-sd")
    begun(tmp_path / "run", small.run(model))
    files = [path for path in model.rglob("*") if path.is_file()]
    for path in files:
        path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(
        RunError, match=rf"(?s)(.*began with; ){{{resuming.SHOWN}}}{len(files) - resuming.SHOWN} more; put it"
    ):
        opening.resume(LocalFolder(local=tmp_path / "run"), small.run(model), pytest.fail)


def test_records_damaged_by_a_power_cut_are_said_at_a_resume(small_sd, tmp_path):
    begun(tmp_path / "run", small.run(small_sd)).record("train", 1, {"loss": 1.0})
    for name in ("metrics.jsonl", "events.jsonl"):
        with (tmp_path / "run" / name).open("ab") as file:
            file.write(b"\0" * 64 + b"\n")
    said = []
    opening.resume(LocalFolder(local=tmp_path / "run"), small.run(small_sd), said.append)
    assert any("metrics.jsonl, line 2: not what a run records" in line for line in said)
    assert any("events.jsonl, line 1: not what a run records" in line for line in said)


def test_of_a_run_that_has_not_kept_what_it_began_with_that_is_said(small_sd, tmp_path):
    Recorder.create(LocalFolder(local=tmp_path / "run"), small.run(small_sd))
    said = []
    opening.resume(LocalFolder(local=tmp_path / "run"), small.run(small_sd), said.append)
    assert "has no inputs.json: whether its prompts, model and rewards are as they were is not known" in said[0]


def test_a_resumed_run_may_be_longer_and_have_other_workers(small_sd, tmp_path):
    begun(tmp_path / "run", small.run(small_sd))
    longer = small.run(small_sd, steps=7, workers__samplers__workers=3, checkpoints__keep=9)
    opening.resume(LocalFolder(local=tmp_path / "run"), longer, lambda line: None)
    assert configs.read(tmp_path / "run") == longer


def unmounted(folder):
    """Have the checkpoints lie on another disk, which is not there."""
    (folder / "checkpoints").rename(folder.parent / "disk")
    (folder / "checkpoints").symlink_to(folder.parent / "unmounted")


def damaged(folder):
    for path in (folder / "checkpoints").glob("*/trainable.safetensors"):
        path.write_bytes(b"cut")


@pytest.mark.parametrize("harm", [unmounted, damaged])
def test_a_run_whose_checkpoints_cannot_be_read_keeps_its_records(small_sd, tmp_path, harm):
    run, folder = small.run(small_sd, steps=2, checkpoints__every=1), tmp_path / "run"
    go(run, folder)
    harm(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".writer"}
    with pytest.raises(CheckpointError, match=r"has made checkpoints, the last after step 2, and none can be read"):
        opening.resume(LocalFolder(local=folder), run, lambda line: None)
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".writer"}
    assert after == before


def test_a_resume_that_is_refused_takes_the_run_from_nobody(small_sd, tmp_path):
    recorder = begun(tmp_path / "run", small.run(small_sd, steps=4))
    saved(tmp_path / "run", 3)
    with pytest.raises(RunError, match="has done 3 steps"):
        opening.resume(LocalFolder(local=tmp_path / "run"), small.run(small_sd, steps=2), lambda line: None)
    recorder.event("fault", message="goes on")
