"""Snapshots: checkpoints that continue exactly, and weights that nobody may get."""

import json

import pytest
import torch

from pcpo_ray.data.updates import DriverState
from pcpo_ray.errors import CheckpointError, RunError, TrainingError, WeightsError
from pcpo_ray.runs import checkpoints
from pcpo_ray.workers.learner import sharding
from tests.support.trajectories import batch, pair


def test_a_checkpoint_restores_parameters_and_optimizer_to_the_bit(small_sd, tmp_path):
    sampler, learner = pair(small_sd)
    learner.update(1, batch(sampler, learner))
    learner.save(tmp_path / "step-000001", DriverState(step=1, histories={"reward": {"a": [1.0, 2.0]}}))
    _, other = pair(small_sd)
    assert other.restore(tmp_path / "step-000001") == DriverState(step=1, histories={"reward": {"a": [1.0, 2.0]}})
    groups = batch(sampler, learner)
    learner.update(2, groups)
    other.update(2, groups)
    assert learner.weights().manifest.checksum == other.weights().manifest.checksum


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_an_ema_continues_from_any_checkpoint_also_from_step_0(small_sd, tmp_path, steps):
    sampler, learner = pair(small_sd, optimizer__average=0.9, optimizer__minibatches=2)
    for step in range(1, steps + 1):
        learner.update(step, batch(sampler, learner))
    learner.save(tmp_path / "saved", DriverState(step=steps))
    _, other = pair(small_sd, optimizer__average=0.9, optimizer__minibatches=2)
    other.restore(tmp_path / "saved")
    assert other.ema.updates == 2 * steps
    groups = batch(sampler, learner)
    for one in (learner, other):
        one.update(steps + 1, groups)
    for averaged in (False, True):
        sent = [one.weights(averaged=averaged).manifest.checksum for one in (learner, other)]
        assert sent[0] == sent[1]


def test_a_checkpoint_that_may_not_be_written_any_more_has_no_name(small_sd, tmp_path):
    def refused():
        raise RunError("another process has taken over")

    _, learner = pair(small_sd)
    with pytest.raises(RunError, match="taken over"):
        learner.save(tmp_path / "step-000000", DriverState(step=0), allowed=refused)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_another_step_than_the_learners_is_refused(small_sd, tmp_path):
    sampler, learner = pair(small_sd)
    learner.update(1, batch(sampler, learner))
    with pytest.raises(TrainingError, match="step 0 is to be saved, and the learner holds version 1"):
        learner.save(tmp_path / "step-000000", DriverState(step=0))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("average", ["null", 0.9])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_half_precision_checkpoint_has_masters_and_continues_exactly(small_sd, tmp_path, dtype, average):
    changes = {"model__train": "{kind: full}", "model__dtype": dtype, "optimizer__learning_rate": 1e-5}
    sampler, learner = pair(small_sd, **changes, optimizer__average=average)
    learner.update(1, batch(sampler, learner))
    folder = tmp_path / "step-000001"
    learner.save(folder, DriverState(step=1))
    saved = checkpoints.read(folder)
    assert {value.dtype for value in (*saved.parameters.values(), *saved.averaged.values())} == {torch.float32}
    _, other = pair(small_sd, **changes, optimizer__average=average)
    other.restore(folder)
    groups = batch(sampler, learner)
    learner.update(2, groups)
    other.update(2, groups)
    assert all(torch.equal(value, other.masters.values[name]) for name, value in learner.masters.values.items())
    assert learner.weights().manifest.checksum == other.weights().manifest.checksum
    averaged = learner.weights(averaged=average != "null").manifest.checksum
    assert averaged == other.weights(averaged=average != "null").manifest.checksum
    drawn, _ = pair(small_sd, **changes)  # as `sample` loads it: into a network of the run's dtype
    sharding.load_parameters(folder, saved.best, drawn.policy.denoiser.trainable())


@pytest.mark.parametrize("average", ["null", 0.9])
def test_no_checkpoint_is_written_that_nobody_could_continue(small_sd, tmp_path, average):
    sampler, learner = pair(small_sd, optimizer__average=average)
    learner.update(1, batch(sampler, learner))
    broken = learner.masters.values if average == "null" else dict(enumerate(learner.ema.values))
    next(iter(broken.values())).data.fill_(float("nan"))
    with pytest.raises(TrainingError, match="prediction is not finite"):
        learner.save(tmp_path / "step-000001", DriverState(step=1))
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_nobody_could_continue_is_refused_by_name(small_sd, tmp_path):
    from safetensors.torch import load_file, save_file

    _, learner = pair(small_sd)
    folder = tmp_path / "step-000000"
    learner.save(folder, DriverState(step=0))
    held = load_file(folder / "trainable.safetensors")
    save_file({name: value.fill_(float("nan")) for name, value in held.items()}, folder / "trainable.safetensors")
    state = json.loads((folder / "state.json").read_text())
    state["files"]["trainable.safetensors"] = checkpoints.checksum(folder / "trainable.safetensors")
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match="step-000000 cannot be continued"):
        learner.restore(folder)


def test_weights_that_predict_nan_are_not_sent_and_the_cause_is_named(small_sd):
    sampler, learner = pair(small_sd)
    sent = learner.weights()
    next(iter(learner.masters.values.values())).data.fill_(float("nan"))
    with pytest.raises(TrainingError, match="version 0 the network's prediction is not finite"):
        learner.weights()
    dict(sampler.policy.denoiser.module.named_parameters())["conv_in.bias"].data.fill_(float("nan"))
    with pytest.raises(WeightsError, match="prediction of this sampler is not finite"):
        sampler.load(sent)
