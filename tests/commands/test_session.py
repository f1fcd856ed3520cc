"""What is checked before a model is loaded, and how a run is found again."""

import gc
import shutil
from typing import Any

import pytest

from pcpo_ray.commands import plan, session
from pcpo_ray.errors import (
    ConfigError,
    CreditError,
    ModelError,
    PcpoError,
    PromptError,
    RewardError,
    ScheduleError,
)
from pcpo_ray.runs.folder import LocalFolder
from pcpo_ray.training import inputs
from pcpo_ray.training.recorder import Recorder
from tests.support import small


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
    with pytest.raises(ModelError, match=f"model/{part} cannot be loaded as a"):
        stages: Any = session.stages(small.run(folder), local=True, say=pytest.fail)
        stages.samplers.sampler.policy.denoiser.encode(["a text, before which no text encoder is loaded"])


def test_a_share_that_cannot_be_even_is_noted_but_not_of_one_process(hollow_sd):
    run = small.run(hollow_sd, rollout__prompts=3, workers__samplers__workers=2)
    (line,) = session.notes(run, local=False)
    assert line.startswith("note: a batch has rollout.prompts=3 groups: 1 of 2 processes that sample make 2")
    assert session.notes(run, local=True) == []


def test_a_flow_whose_last_step_would_have_to_be_trained_is_refused(hollow_flux):
    with pytest.raises(CreditError, match=r"sampling\.trained_steps=4.*leave it untrained"):
        session.check(small.run(hollow_flux, sampling__trained_steps=4))


def test_more_ranks_than_a_minibatch_has_to_share_are_refused_by_number(hollow_sd):
    def checked(ranks, **changes):
        settings = {"rollout__prompts": 5, "optimizer__minibatches": 2, "sampling__batch": 3, **changes}
        run = small.run(hollow_sd, **settings, workers__learner=f"{{ranks: {ranks}}}")
        session.check(run)
        plan.plan(run)

    checked(16)  # two groups, in blocks of three images and of one, at four steps
    with pytest.raises(ConfigError, match=r"ranks is 17, and a mini-batch has 16 blocks .* use at most 16 ranks"):
        checked(17)
    for fewer in ({"sampling__batch": 4}, {"optimizer__minibatches": 5}, {"sampling__trained_steps": 2}):
        checked(8, **fewer)
        with pytest.raises(ConfigError, match="use at most 8 ranks"):
            checked(9, **fewer)
    checked(32, optimizer__micro_batch=1)


def test_an_evaluation_that_is_not_guided_has_no_branch_to_detach(hollow_sd):
    changes = {"sampling__guidance_scale": 2, "sampling__detach_unconditional": True}
    run = small.run(hollow_sd, **changes, evaluation__sampling="{guidance_scale: 1, deterministic: true}")
    session.check(run)
    assert run.sampling.detach_unconditional and not run.evaluated.detach_unconditional


@pytest.fixture
def thawed():
    """A process that has frozen no objects, as tests/conftest.py has."""
    gc.unfreeze()
    yield
    gc.collect()
    gc.freeze()


def test_the_garbage_collector_ignores_earlier_objects_only_meanwhile(thawed):
    with session.frozen():
        kept = gc.get_freeze_count()
        circle = []
        circle.append(circle)
        del circle
        assert gc.collect() >= 1  # what comes afterwards it clears away as ever
    assert kept > 10_000 and gc.get_freeze_count() == 0


def test_it_is_unfrozen_where_a_run_fails(thawed):
    with pytest.raises(ValueError, match="lost"), session.frozen():
        raise ValueError("lost")
    assert gc.get_freeze_count() == 0


def test_what_a_process_has_frozen_itself_stays_frozen(thawed):
    gc.freeze()
    kept = gc.get_freeze_count()
    with session.frozen():
        pass
    assert gc.get_freeze_count() >= kept - 100 > 10_000  # those that reference counts free are gone


def test_tiles_of_the_vae_are_warned_of_unless_a_grid_is_watched(small_sd):
    tiled = {"model__vae_tiling": True}
    (line,) = session.warnings(small.run(small_sd, **tiled))
    assert "model.vae_tiling" in line and "{kind: grid}" in line
    assert session.warnings(small.run(small_sd)) == []
    assert session.warnings(small.run(small_sd, evaluation__rewards="[{kind: grid}]", **tiled)) == []


def test_prompts_that_a_watched_oracle_cannot_read_are_named_once(small_sd, tmp_path):
    (tmp_path / "prompts.txt").write_text("a cat\na dog\na red circle\n" * 3)
    prompts = {"prompts": str(tmp_path / "prompts.txt"), "evaluation__rewards": "[{kind: shapes_oracle}]"}
    (line,) = session.warnings(small.run(small_sd, **prompts))
    assert "shapes_oracle read captions of the shapes world only, and 2 of 3 prompts are none, such as 'a cat'" in line


def test_an_oracle_that_cannot_read_the_prompts_is_not_trained_on(small_sd, tmp_path):
    (tmp_path / "prompts.txt").write_text("a cat\na dog\na red circle\n")
    prompts = {"prompts": str(tmp_path / "prompts.txt"), "rewards": "[{kind: shapes_oracle}]"}
    with pytest.raises(PromptError, match=r"2 of 3 prompts are none, such as 'a cat'.*nothing to train on"):
        session.check(small.run(small_sd, **prompts))
    (tmp_path / "prompts.txt").write_text("a red ring\na red circle\n")
    session.check(small.run(small_sd, **prompts))


def test_a_judge_of_pairs_alone_is_warned_of(small_sd):
    judge = "{kind: judge, url: 'http://localhost/v1', model: m, mode: pairwise}"
    (line,) = session.warnings(small.run(small_sd, rewards=f"[{judge}]"))
    assert "judge compares the images of one prompt" in line
    assert session.warnings(small.run(small_sd, rewards=f"[{judge}, {{kind: grain}}]")) == []
