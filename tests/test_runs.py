"""What is checked before a model is loaded, and how a run is found again."""

import gc
import shutil
from typing import Any

import numpy as np
import pytest
import torch

from pcpo_ray import checkpoint, runs
from pcpo_ray.errors import CreditError, ModelError, PcpoError, PromptError, RewardError, RunError, ScheduleError
from pcpo_ray.evaluation import Estimate
from pcpo_ray.recorder import Recorder
from pcpo_ray.stages import State
from tests import small


@pytest.fixture(scope="module")
def hollow_sd(small_sd, tmp_path_factory):
    return small.hollow(small_sd, tmp_path_factory.mktemp("hollow") / "small-sd")


@pytest.fixture(scope="module")
def hollow_flux(small_flux, tmp_path_factory):
    return small.hollow(small_flux, tmp_path_factory.mktemp("hollow") / "small-flux")


def saved(folder, step):
    where = checkpoint.folder_for(folder, step)
    weights = {"w": torch.ones(4)}
    state = State(step=step)
    checkpoint.write(
        where, version=step, state=state, parameters=weights, averaged={}, optimizer=weights, export=lambda folder: None
    )
    return where


def test_a_run_that_can_start_passes_without_its_weights_being_touched(hollow_sd, hollow_flux):
    runs.check(small.run(hollow_sd))
    runs.check(small.run(hollow_flux))
    with pytest.raises(ModelError, match="cannot be loaded"):
        runs.stages(small.run(hollow_sd), local=True, say=pytest.fail)


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
        ({"credit": "{kind: variance, w_star: 1.0e-9}"}, CreditError, "w_star|w\\*"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_loaded(hollow_sd, changes, error, words):
    with pytest.raises(error, match=words) as caught:
        runs.check(small.run(hollow_sd, **changes))
    assert isinstance(caught.value, PcpoError)


@pytest.mark.parametrize("name", ["model_index.json", "scheduler/scheduler_config.json"])
def test_a_model_file_cut_short_is_named_before_anything_is_loaded(hollow_sd, tmp_path, name):
    folder = shutil.copytree(hollow_sd, tmp_path / "model")
    (folder / name).write_text((folder / name).read_text()[:-5])
    with pytest.raises(ModelError, match=f"{name} is not JSON"):
        runs.check(small.run(folder))


@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae"])
def test_weights_cut_short_are_a_named_error(small_sd, tmp_path, part):
    folder = shutil.copytree(small_sd, tmp_path / "model")
    weights = next((folder / part).glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(ModelError, match="model cannot be loaded as a StableDiffusionPipeline"):
        stages: Any = runs.stages(small.run(folder), local=True, say=pytest.fail)
        stages.samplers.sampler.policy.denoiser.encode(["a text, before which no text encoder is loaded"])


def test_a_flow_whose_last_step_would_have_to_be_trained_is_refused(hollow_flux):
    with pytest.raises(CreditError):
        runs.check(small.run(hollow_flux, sampling__trained_steps=4))


def test_what_is_not_there_to_resume_is_said(small_sd, tmp_path):
    with pytest.raises(RunError, match=r"no run at .*nothing to resume; leave out --resume"):
        runs.resume(tmp_path / "nothing", small.run(small_sd), pytest.fail)


def test_a_run_resumes_from_the_newest_whole_checkpoint_and_says_which_it_passed_over(small_sd, tmp_path):
    run = small.run(small_sd)
    Recorder.create(tmp_path / "run", run)
    older, newer = saved(tmp_path / "run", 1), saved(tmp_path / "run", 2)
    (newer / "trainable.safetensors").write_bytes((newer / "trainable.safetensors").read_bytes()[:-1])
    said = []
    _, found = runs.resume(tmp_path / "run", run, said.append)
    assert older.name == "step-000001" and found == 1
    assert [("step-000002" in line, "falling back" in line) for line in said] == [(True, True)]


def test_a_run_without_a_checkpoint_starts_over_and_says_so(small_sd, tmp_path):
    run = small.run(small_sd)
    Recorder.create(tmp_path / "run", run)
    said = []
    assert runs.resume(tmp_path / "run", run, said.append)[1] is None
    assert "starting from step 0" in said[0]
    with pytest.raises(RunError, match="no whole checkpoint"):
        runs.newest_checkpoint(tmp_path / "run", pytest.fail)


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"seed": 1}, "seed was 0, now 1"), ({"optimizer__learning_rate": 1}, "optimizer was .*0.01.* now .*1.0")],
)
def test_a_resumed_run_may_not_differ_in_what_made_its_past(small_sd, tmp_path, changes, named):
    Recorder.create(tmp_path / "run", small.run(small_sd))
    with pytest.raises(RunError, match=named):
        runs.resume(tmp_path / "run", small.run(small_sd, **changes), pytest.fail)


def test_a_resumed_run_may_be_longer_and_have_other_workers_and_remembers_them(small_sd, tmp_path):
    Recorder.create(tmp_path / "run", small.run(small_sd))
    longer = small.run(small_sd, steps=7, workers__samplers__workers=3, checkpoints__keep=9)
    runs.resume(tmp_path / "run", longer, lambda line: None)
    assert runs.read(tmp_path / "run") == longer


def test_a_run_that_is_not_there_is_answered_with_those_that_are(small_sd, tmp_path):
    Recorder.create(tmp_path / "there", small.run(small_sd))
    with pytest.raises(RunError, match=r"no run at .*absent; in .* there are \['there'\]"):
        runs.read(tmp_path / "absent")
    (tmp_path / "there" / "config.yaml").write_text("name: there\n")
    with pytest.raises(RunError, match=r"(?s)config.yaml is not a config of this version.*steps"):
        runs.read(tmp_path / "there")


def test_an_evaluation_is_read_in_the_order_of_prompts_and_one_that_is_not_stored_is_named(small_sd, tmp_path):
    recorder = Recorder.create(tmp_path / "run", small.run(small_sd))
    before = np.random.default_rng(0).normal(size=(3, 2))
    places: dict[str, Any] = {
        "position": np.repeat(np.arange(3), 2),
        "sample": np.tile(np.arange(2), 3),
        "prompt": ["x"] * 6,
    }
    for step, values in ((0, before), (4, before + 0.25)):
        recorder.samples("evaluations.parquet", step, {"step": [step] * 6, **places, "reward": list(values.ravel())})
    assert np.array_equal(runs.evaluations(tmp_path / "run", 0)["reward"], before)
    assert np.array_equal(runs.evaluations(tmp_path / "run", 4)["reward"], before + 0.25)
    with pytest.raises(RunError, match="no evaluation of step 9"):
        runs.evaluations(tmp_path / "run", 9)


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(0.1, 0.3, " rose: "), (-0.3, -0.1, " FELL: "), (-0.1, 0.3, "NOT clearly"), (0.0, 0.3, "NOT clearly")],
)
def test_the_verdict_claims_no_more_than_the_interval_shows(low, high, words):
    sentence = runs.verdict(Estimate(mean=(low + high) / 2, low=low, high=high), 64)
    assert words in sentence
    assert "64 images" in sentence


def test_the_garbage_collector_leaves_alone_what_was_there_before_and_only_meanwhile():
    with runs.frozen():
        kept = gc.get_freeze_count()
        circle = []
        circle.append(circle)
        del circle
        assert gc.collect() >= 1  # what comes afterwards it clears away as ever
    assert kept > 10_000 and gc.get_freeze_count() == 0


def test_it_is_unfrozen_where_a_run_fails():
    with pytest.raises(ValueError, match="lost"), runs.frozen():
        raise ValueError("lost")
    assert gc.get_freeze_count() == 0
