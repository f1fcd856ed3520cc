"""What is checked before a model is loaded, and how a run is found again."""

import gc
import json
import shutil
from typing import Any

import numpy as np
import pytest

from pcpo_ray.commands import plan, session
from pcpo_ray.errors import (
    ConfigError,
    CreditError,
    ModelError,
    PcpoError,
    PromptError,
    RewardError,
    RunError,
    ScheduleError,
)
from pcpo_ray.runs import records
from pcpo_ray.runs.folder import LocalFolder
from pcpo_ray.runs.intervals import Estimate
from pcpo_ray.training import inputs
from pcpo_ray.training.recorder import Recorder
from tests.support import small
from tests.support.running import saved


@pytest.fixture(scope="module")
def hollow_sd(small_sd, tmp_path_factory):
    return small.hollow(small_sd, tmp_path_factory.mktemp("hollow") / "small-sd")


@pytest.fixture(scope="module")
def hollow_flux(small_flux, tmp_path_factory):
    return small.hollow(small_flux, tmp_path_factory.mktemp("hollow") / "small-flux")


def begun(folder, run):
    return Recorder.create(LocalFolder(local=folder), run, began=inputs.digests(inputs.of_run(run)))


def test_a_run_that_can_start_passes_without_its_weights_being_touched(hollow_sd, hollow_flux):
    session.check(small.run(hollow_sd))
    session.check(small.run(hollow_flux))
    with pytest.raises(ModelError, match="cannot be loaded"):
        session.stages(small.run(hollow_sd), local=True, say=pytest.fail)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"model__path": "no/such/folder"}, ModelError, "no/such/folder"),
        ({"model__path": "shapes-ds"}, ModelError, "shapes-ds"),
        ({"prompts": "{kind: file, path: nothing.txt}"}, PromptError, "nothing.txt"),
        ({"evaluation__prompts": "{kind: file, path: nothing.csv}"}, PromptError, "nothing.csv"),
        ({"rewards": "[{kind: 'no_module:X'}]"}, RewardError, "no_module"),
        ({"evaluation__rewards": "[{kind: 'json:loads'}]"}, RewardError, "no reward"),
        ({"rewards": "[{kind: clip_score, model: no/clip}]"}, RewardError, "no/clip"),
        ({"sampling__steps": 1001}, ScheduleError, "is 1001; .* trained on 1000"),
        (
            {"credit": "{kind: variance, w_star: 1.0e-9}"},
            CreditError,
            r"credit\.kind=variance, sampling\.steps=4.* w_star",
        ),
        (
            {"sampling__process": "{kind: ddim, eta: 9}"},
            ScheduleError,
            r"sampling\.process\.kind=ddim: .*a smaller eta",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_loaded(hollow_sd, changes, error, words):
    with pytest.raises(error, match=words) as caught:
        session.check(small.run(hollow_sd, **changes))
    assert isinstance(caught.value, PcpoError)


@pytest.mark.parametrize("name", ["model_index.json", "scheduler/scheduler_config.json"])
def test_a_model_file_cut_short_is_named_before_anything_is_loaded(hollow_sd, tmp_path, name):
    folder = shutil.copytree(hollow_sd, tmp_path / "model")
    (folder / name).write_text((folder / name).read_text()[:-5])
    with pytest.raises(ModelError, match=f"{name} is not JSON"):
        session.check(small.run(folder))


@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae"])
def test_weights_cut_short_are_a_named_error(small_sd, tmp_path, part):
    folder = shutil.copytree(small_sd, tmp_path / "model")
    weights = next((folder / part).glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(ModelError, match="model cannot be loaded as a StableDiffusionPipeline"):
        stages: Any = session.stages(small.run(folder), local=True, say=pytest.fail)
        stages.samplers.sampler.policy.denoiser.encode(["a text, before which no text encoder is loaded"])


def test_a_flow_whose_last_step_would_have_to_be_trained_is_refused(hollow_flux):
    with pytest.raises(CreditError, match=r"sampling\.trained_steps=4.*leave it untrained"):
        session.check(small.run(hollow_flux, sampling__trained_steps=4))


def test_more_ranks_than_a_minibatch_has_to_share_are_refused_by_number(hollow_sd):
    def checked(ranks, **changes):
        settings = {"rollout__prompts": 5, "optimizer__updates": 2, "sampling__batch": 3, **changes}
        run = small.run(hollow_sd, **settings, workers__learner=f"{{ranks: {ranks}}}")
        session.check(run)
        plan.plan(run)

    checked(16)  # two groups, in blocks of three images and of one, at four steps
    with pytest.raises(ConfigError, match=r"ranks is 17, and a minibatch has 16 blocks .* use at most 16 ranks"):
        checked(17)
    for fewer in ({"sampling__batch": 4}, {"optimizer__updates": 5}, {"sampling__trained_steps": 2}):
        checked(8, **fewer)
        with pytest.raises(ConfigError, match="use at most 8 ranks"):
            checked(9, **fewer)
    checked(32, optimizer__micro_batch=1)


def test_an_evaluation_that_is_not_guided_has_no_branch_to_detach(hollow_sd):
    changes = {"sampling__guidance_scale": 2, "sampling__detach_unconditional": True}
    run = small.run(hollow_sd, **changes, evaluation__sampling="{guidance_scale: 1, deterministic: true}")
    session.check(run)
    assert run.sampling.detach_unconditional and not run.evaluated.detach_unconditional


def test_what_is_not_there_to_resume_is_said(small_sd, tmp_path):
    with pytest.raises(RunError, match=r"no run at .*nothing to resume; leave out --resume"):
        session.resume(LocalFolder(local=tmp_path / "nothing"), small.run(small_sd), pytest.fail)


def test_a_run_resumes_from_the_newest_whole_checkpoint_and_says_which_it_passed_over(small_sd, tmp_path):
    run = small.run(small_sd)
    begun(tmp_path / "run", run)
    older, newer = saved(tmp_path / "run", 1), saved(tmp_path / "run", 2)
    (newer / "trainable.safetensors").write_bytes((newer / "trainable.safetensors").read_bytes()[:-1])
    said = []
    _, found = session.resume(LocalFolder(local=tmp_path / "run"), run, said.append)
    assert older.name == "step-000001" and found == 1
    assert [("step-000002" in line, "falling back" in line) for line in said] == [(True, True)]


def test_a_run_without_a_checkpoint_starts_over_and_says_so(small_sd, tmp_path):
    run = small.run(small_sd)
    begun(tmp_path / "run", run)
    said = []
    assert session.resume(LocalFolder(local=tmp_path / "run"), run, said.append)[1] is None
    assert "starting from step 0" in said[0]
    with pytest.raises(RunError, match="no whole checkpoint"):
        records.newest_checkpoint(tmp_path / "run", pytest.fail)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, "seed was 0, now 1"),
        ({"optimizer__learning_rate": 1}, "optimizer.learning_rate was 0.01, now 1.0"),
        ({"credit": "{kind: released, w_star: 3}"}, "credit.kind was 'reweight', now 'released'"),
        ({"rewards": "[{kind: grain}]"}, "rewards.0.kind was 'jpeg_compressibility', now 'grain'"),
        (
            {"rewards": "[{kind: jpeg_compressibility}, {kind: grain}]"},
            "rewards was [kind jpeg_compressibility], now [kind jpeg_compressibility, kind grain]",
        ),
        ({"evaluation__quality": "{features: {kind: clip}}"}, "evaluation.quality was null, now given"),
        ({"sampling__height": 32, "seed": 1}, "seed was 0, now 1; sampling.height was 16, now 32"),
        ({"seed": 1, "model__path": "elsewhere-sd"}, "seed was 0, now 1"),
    ],
)
def test_a_resumed_run_may_not_differ_in_what_made_its_past(small_sd, tmp_path, monkeypatch, changes, named):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(small_sd, "elsewhere-sd")
    begun(tmp_path / "run", small.run(small_sd))
    with pytest.raises(RunError) as caught:
        session.resume(LocalFolder(local=tmp_path / "run"), small.run(small_sd, **changes), pytest.fail)
    assert str(caught.value) == (
        f"{tmp_path}/run was started with another config: {named}; give it back, or start under another name"
    )


def test_a_resumed_run_goes_on_with_what_has_moved_and_remembers_where_it_is(small_sd, tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "prompts.txt").write_text("a cat\n")
    prompts = f"{{kind: file, path: {tmp_path}/old/prompts.txt}}"
    begun(tmp_path / "run", small.run(shutil.copytree(small_sd, tmp_path / "old" / "small-sd"), prompts=prompts))
    (tmp_path / "old").rename(tmp_path / "new")
    (tmp_path / "new" / "prompts.txt").rename(tmp_path / "new" / "texts.txt")
    moved = small.run(tmp_path / "new" / "small-sd", prompts=f"{{kind: file, path: {tmp_path}/new/texts.txt}}")
    session.resume(LocalFolder(local=tmp_path / "run"), moved, lambda line: None)
    assert records.read(tmp_path / "run") == moved
    session.resume(LocalFolder(local=tmp_path / "run"), moved, lambda line: None)  # and again


def test_a_resumed_run_may_keep_what_it_caches_elsewhere(small_sd, tmp_path):
    quality = "evaluation__quality"
    begun(tmp_path / "run", small.run(small_sd, **{quality: "{features: {kind: clip}, cache: old}"}))
    run = small.run(small_sd, model__text_cache="texts", **{quality: "{features: {kind: clip}, cache: new}"})
    session.resume(LocalFolder(local=tmp_path / "run"), run, lambda line: None)
    assert records.read(tmp_path / "run") == run


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
        session.resume(LocalFolder(local=tmp_path / "run"), asked(new), pytest.fail)
    assert str(caught.value) == (
        f"{tmp_path}/run was started with other files: {key}: {new / file} is not the file that the run began with; "
        "give it back, or start under another name"
    )


def test_code_that_was_mended_is_said_and_recorded_and_another_class_refused(small_sd, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    code = "class {}:\n    def score(self, images, prompts):\n        return [0.0] * len(images)\n"
    (tmp_path / "mended.py").write_text(code.format("One") + code.format("Two"))
    run = small.run(small_sd, rewards="[{kind: 'mended:One'}]")
    begun(tmp_path / "run", run)
    (tmp_path / "mended.py").write_text(code.format("One") + "# mended\n" + code.format("Two"))
    said = []
    session.resume(LocalFolder(local=tmp_path / "run"), run, said.append)
    changed = f"rewards.0.kind: {tmp_path}/mended.py is not the file that the run began with"
    assert f"{changed}; it goes on with it as it is now" in said
    (event,) = map(json.loads, (tmp_path / "run" / "events.jsonl").read_text().splitlines())
    assert (event["kind"], event["changed"]) == ("code_changed", [changed])
    with pytest.raises(RunError, match=r"another config: rewards\.0\.kind was 'mended:One', now 'mended:Two'"):
        session.resume(
            LocalFolder(local=tmp_path / "run"), small.run(small_sd, rewards="[{kind: 'mended:Two'}]"), said.append
        )


def test_of_many_files_that_changed_some_are_named_and_the_rest_counted(small_sd, tmp_path):
    model = shutil.copytree(small_sd, tmp_path / "small-sd")
    begun(tmp_path / "run", small.run(model))
    files = [path for path in model.rglob("*") if path.is_file()]
    for path in files:
        path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(
        RunError, match=rf"(?s)(.*began with; ){{{session.SAID}}}{len(files) - session.SAID} more; give it"
    ):
        session.resume(LocalFolder(local=tmp_path / "run"), small.run(model), pytest.fail)


def test_records_damaged_by_a_power_cut_are_said_at_a_resume(small_sd, tmp_path):
    begun(tmp_path / "run", small.run(small_sd)).record("train", 1, {"loss": 1.0})
    for name in ("metrics.jsonl", "events.jsonl"):
        with (tmp_path / "run" / name).open("ab") as file:
            file.write(b"\0" * 64 + b"\n")
    said = []
    session.resume(LocalFolder(local=tmp_path / "run"), small.run(small_sd), said.append)
    assert any("metrics.jsonl, line 2: not what a run records" in line for line in said)
    assert any("events.jsonl, line 1: not what a run records" in line for line in said)


def test_of_a_run_that_has_not_kept_what_it_began_with_that_is_said(small_sd, tmp_path):
    Recorder.create(LocalFolder(local=tmp_path / "run"), small.run(small_sd))
    said = []
    session.resume(LocalFolder(local=tmp_path / "run"), small.run(small_sd), said.append)
    assert "has no inputs.json: whether its prompts, model and rewards are as they were is not known" in said[0]


def test_a_resumed_run_may_be_longer_and_have_other_workers_and_remembers_them(small_sd, tmp_path):
    begun(tmp_path / "run", small.run(small_sd))
    longer = small.run(small_sd, steps=7, workers__samplers__workers=3, checkpoints__keep=9)
    session.resume(LocalFolder(local=tmp_path / "run"), longer, lambda line: None)
    assert records.read(tmp_path / "run") == longer


def test_a_run_that_is_not_there_is_answered_with_those_that_are(small_sd, tmp_path):
    Recorder.create(LocalFolder(local=tmp_path / "there"), small.run(small_sd))
    with pytest.raises(RunError, match=r"no run at .*absent; in .* there are \['there'\]"):
        records.read(tmp_path / "absent")
    (tmp_path / "there" / "config.yaml").write_text("name: there\n")
    with pytest.raises(RunError, match=r"(?s)config.yaml is not a config of this version.*steps"):
        records.read(tmp_path / "there")


def test_an_evaluation_is_read_in_the_order_of_prompts_and_one_that_is_not_stored_is_named(small_sd, tmp_path):
    recorder = Recorder.create(LocalFolder(local=tmp_path / "run"), small.run(small_sd))
    before = np.random.default_rng(0).normal(size=(3, 2))
    places: dict[str, Any] = {
        "position": np.repeat(np.arange(3), 2),
        "sample": np.tile(np.arange(2), 3),
        "prompt": ["x"] * 6,
    }
    for step, values in ((0, before), (4, before + 0.25)):
        recorder.samples("evaluations.parquet", step, {"step": [step] * 6, **places, "reward": list(values.ravel())})
    assert np.array_equal(records.evaluations(tmp_path / "run", 0)["reward"], before)
    assert np.array_equal(records.evaluations(tmp_path / "run", 4)["reward"], before + 0.25)
    with pytest.raises(RunError, match="no evaluation of step 9"):
        records.evaluations(tmp_path / "run", 9)


@pytest.mark.parametrize(
    ("changes", "override", "words"),
    [
        ({}, "prompts={kind: shapes, form: thing}", "override evaluation.prompts"),
        ({"evaluation__sampling": "{steps: 4}"}, "sampling.steps=3", "evaluation.sampling.steps=4; override that"),
        (
            {"evaluation__sampling": "{deterministic: true}"},
            "sampling.process={kind: ddim, eta: 0.5}",
            "evaluation.sampling.deterministic=True; override that",
        ),
    ],
)
def test_an_override_that_would_tell_nothing_of_the_run_is_refused(tmp_path, changes, override, words):
    Recorder.create(LocalFolder(local=tmp_path / "run"), small.run("model", **changes))
    with pytest.raises(ConfigError, match=words):
        session.read_to_evaluate(tmp_path / "run", [override])
    other = session.read_to_evaluate(tmp_path / "run", ["sampling.guidance_scale=3", "evaluation.count=7"])
    assert (other.evaluated.guidance_scale, other.evaluation.count) == (3, 7)


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(0.1, 0.3, " rose: "), (-0.3, -0.1, " FELL: "), (-0.1, 0.3, "NOT clearly"), (0.0, 0.3, "NOT clearly")],
)
def test_the_verdict_claims_no_more_than_the_interval_shows(low, high, words):
    gained = Estimate(mean=(low + high) / 2, low=low, high=high)
    sentence = session.verdict(small.run("model"), gained, 64)
    assert words in sentence and sentence.startswith("The held-out reward")
    trained_on = session.verdict(small.run("model", evaluation__held_out=False), gained, 64)
    assert words in trained_on and trained_on.startswith("The reward of training prompts")
    assert "64 images" in sentence


def test_the_garbage_collector_leaves_alone_what_was_there_before_and_only_meanwhile():
    with session.frozen():
        kept = gc.get_freeze_count()
        circle = []
        circle.append(circle)
        del circle
        assert gc.collect() >= 1  # what comes afterwards it clears away as ever
    assert kept > 10_000 and gc.get_freeze_count() == 0


def test_it_is_unfrozen_where_a_run_fails():
    with pytest.raises(ValueError, match="lost"), session.frozen():
        raise ValueError("lost")
    assert gc.get_freeze_count() == 0
