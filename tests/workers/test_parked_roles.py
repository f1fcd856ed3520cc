"""Roles whose tensors are parked (workers.park): where they are, and that no bit of a run depends on it."""

import numpy as np
import pytest
import torch
from pyarrow import parquet

from pcpo_ray.data.updates import DriverState
from pcpo_ray.errors import TrainingError
from pcpo_ray.rewards import clip
from pcpo_ray.runs import checkpoints
from pcpo_ray.workers.learner import optimizers
from pcpo_ray.workers.learner.learner import Learner
from pcpo_ray.workers.sampler import Sampler
from pcpo_ray.workers.scorer import Scorer
from tests.support import small
from tests.support.running import go
from tests.support.trajectories import CPU, batch, task
from tests.support.two_places import two_places

PARK = {"workers__park": "true"}
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
WATCHED = {
    "rewards": "[{kind: clip_score}, {kind: jpeg_compressibility, weight: 0.01}]",
    "evaluation__rewards": "[{kind: diversity}]",
    "evaluation__quality": "{features: {kind: clip}}",
}
"""Rewards that are trained on, one that evaluations watch, and quality, of which three have one network."""


@pytest.fixture(autouse=True)
def fresh_clips():
    """A process keeps its CLIP models, and those of other tests are not parked."""
    clip.loaded.cache_clear()
    yield
    clip.loaded.cache_clear()


@pytest.fixture
def copies(monkeypatch):
    return two_places(monkeypatch)


def noted(monkeypatch, copies, *methods):
    """How many tensors are on the device when each of the methods (of an object, by name) is called."""
    seen = set()

    def watched(owner, name):
        method = getattr(owner, name)

        def called(*given):
            seen.add((name, copies.alive))
            return method(*given)

        monkeypatch.setattr(owner, name, called)

    for owner, name in methods:
        watched(owner, name)
    return seen


def recorded(folder, name):
    return parquet.read_table(folder / name).to_pydict()


@pytest.mark.parametrize(
    ("fixture", "changes"),
    [
        ("small_sd", {**WATCHED, "optimizer__average": 0.5, "optimizer__minibatches": 2, "rollout__max_staleness": 1}),
        ("small_flux", {"model__train": "{kind: full}", "model__dtype": "bfloat16", "optimizer__average": 0.5}),
    ],
)
def test_a_parked_run_has_the_bits_of_another_also_resumed(request, tmp_path, copies, fixture, changes):
    model = request.getfixturevalue(fixture)
    go(small.run(model, **changes, steps=3), tmp_path / "plain")
    assert not copies.storages
    go(small.run(model, **changes, **PARK, steps=2), tmp_path / "run")
    found = checkpoints.folder_for(tmp_path / "run", 2)
    go(small.run(model, **changes, **PARK, steps=3), tmp_path / "run", found=found)
    assert len(copies.storages) > 100 and copies.alive == 0
    for step in (2, 3):
        one, other = (checkpoints.read(checkpoints.folder_for(tmp_path / name, step)) for name in ("plain", "run"))
        for kind in ("parameters", "averaged", "optimizer"):
            mine, theirs = getattr(one, kind), getattr(other, kind)
            assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    for name in ("scores.parquet", "evaluations.parquet"):
        assert recorded(tmp_path / "plain", name) == recorded(tmp_path / "run", name)


def test_a_sampler_has_its_vae_on_the_device_only_to_decode(small_sd, copies, monkeypatch):
    sampler = Sampler(small.run(small_sd, **PARK), CPU)
    denoiser = sampler.policy.denoiser
    seen = noted(monkeypatch, copies, (denoiser, "decode"), (denoiser, "predict"))
    sampler.sample(task())
    parts = [*denoiser.pipeline.vae.parameters(), *denoiser.pipeline.vae.buffers()]
    assert seen == {("predict", 0), ("decode", len(parts))} and copies.alive == 0
    sampler.sample(task(purpose="evaluate"))
    assert copies.alive == 0


def test_a_scorer_wakes_the_networks_of_the_reward_that_scores(small_sd, copies, monkeypatch):
    run = small.run(small_sd, **WATCHED, **PARK)
    scorer, apart = Scorer(run, CPU), Scorer(small.run(small_sd, **WATCHED), CPU)
    (network,) = scorer.parked  # one CLIP for two rewards and for the quality
    held = len([*network.parameters(), *network.buffers()])
    assert copies.alive == 0 == len(copies.storages)
    for purpose, wakings in (("train", 1), ("evaluate", 3)):
        before = len(copies.storages)
        scores, failures, measured = scorer.score(task(purpose=purpose), IMAGES)
        assert len(copies.storages) - before == wakings * held and copies.alive == 0
        others = apart.score(task(purpose=purpose), IMAGES)
        assert scores == others[0] and failures == others[1] == {}
        assert measured.keys() == others[2].keys() and all((measured[key] == others[2][key]).all() for key in measured)
    monkeypatch.setattr(scorer.rewards["clip_score"], "score", lambda images, prompts: 1 / 0)
    scores, failures, _ = scorer.score(task(), IMAGES)
    assert "ZeroDivisionError" in failures["clip_score"] and copies.alive == 0
    assert np.isfinite(scores["jpeg_compressibility"]).all()


def test_what_a_reward_of_ones_own_holds_is_left_alone(small_sd, copies):
    run = small.run(small_sd, rewards="[{kind: 'tests.workers.test_parked_roles:Own'}]", **PARK)
    scorer = Scorer(run, CPU)
    scores, failures, _ = scorer.score(task(), IMAGES)
    assert failures == {} and scores["Own"] == [0.0] * 4 and not scorer.parked and not copies.storages


class Own:
    """A reward with a network under the name that shipped ones have."""

    def __init__(self) -> None:
        self.networks = [torch.nn.Linear(1, 1)]
        self.place = self.networks[0].weight.data_ptr()

    def score(self, images, prompts):
        return [float(self.networks[0].weight.data_ptr() != self.place)] * len(images)


def test_a_learners_state_sleeps_but_in_its_steps_and_in_checkpoints(small_sd, copies, tmp_path, monkeypatch):
    changes = {"optimizer__average": 0.5, "optimizer__minibatches": 2}
    run = small.run(small_sd, **changes, **PARK)
    learner, sampler = Learner(run, CPU), Sampler(small.run(small_sd, **changes), CPU)
    seen = noted(monkeypatch, copies, (learner.optimizer, "step"), (learner, "_backward"))
    learner.update(1, batch(sampler, learner))
    trained = len(learner.masters.values)
    # the first step makes the state; afterwards there are two moments, a count and a mean of each parameter
    assert seen == {("_backward", 0), ("step", trained), ("step", 4 * trained)} and copies.alive == 0
    assert len(learner.resting.homes) == 4 * trained
    learner.save(tmp_path / "step-000001", DriverState(step=1))
    other = Learner(run, CPU)
    other.restore(tmp_path / "step-000001")
    assert copies.alive == 0 and len(other.resting.homes) == 4 * trained
    groups = batch(sampler, learner)
    for one in (learner, other):
        one.update(2, groups)
    assert all(torch.equal(learner.masters.values[name], value) for name, value in other.masters.values.items())
    assert learner.weights(averaged=True).manifest.checksum == other.weights(averaged=True).manifest.checksum


def test_an_update_that_breaks_off_in_a_step_leaves_a_sleeping_state(small_sd, copies, tmp_path, monkeypatch):
    run = small.run(small_sd, **PARK)
    learner, sampler = Learner(run, CPU), Sampler(run, CPU)
    learner.save(tmp_path / "step-000000", DriverState(step=0))
    groups = batch(sampler, learner)
    learner.update(1, groups)
    expected = learner.weights().manifest.checksum

    def broken():
        raise torch.OutOfMemoryError("no room")

    with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError):
        patch.setattr(learner.optimizer, "step", broken)
        learner.update(2, batch(sampler, learner))
    assert copies.alive == 0
    with pytest.raises(TrainingError, match="broken off"):
        learner.save(tmp_path / "step-000001", DriverState(step=1))
    learner.restore(tmp_path / "step-000000")
    learner.optimizer.zero_grad()
    assert not optimizers.state_tensors(learner.optimizer) and not learner.resting.homes
    learner.update(1, groups)
    assert learner.weights().manifest.checksum == expected and copies.alive == 0
