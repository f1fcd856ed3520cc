"""Simulated work: a real run whose networks sleep."""

import pytest

from pcpo_ray.commands.bench import grow, loop, simulated
from pcpo_ray.commands.bench.simulated import IMAGES, STEPS
from pcpo_ray.training.local import LocalLearner


@pytest.fixture
def quick(monkeypatch):
    """The time it takes does not matter here, who takes it does."""
    slept = []
    monkeypatch.setattr("time.sleep", slept.append)
    return slept


def test_its_sleeps_are_those_of_the_images_and_steps(quick):
    run = simulated.run(simulated.Sleeping, samplers=1, prompts=2, scoring=0.25)
    with simulated.looped(run, lambda line: None, local=True) as looped:
        simulated.steps(looped, 1, staleness=0, prompts=2)  # an evaluation comes before
        del quick[:]
        (seconds,) = simulated.steps(looped, 1, staleness=0, prompts=3)
        assert looped.progress.step == 2 and seconds > 0
        learner = looped.stages.learner
        assert isinstance(learner, LocalLearner)
        trained = len(learner.learner.policy.credit.trained)
    learned = 3 * IMAGES * trained * simulated.Sleeping.learn
    sampled = 3 * IMAGES * STEPS * simulated.Sleeping.sample
    assert sum(quick) >= learned + sampled + 3 * 0.25
    assert sum(quick) < learned + sampled + 5 * 0.25  # besides: canaries, and the evaluation's group at the end


def test_by_hand_a_step_takes_the_roles_times_and_the_loop_continues(quick):
    run = simulated.run(simulated.Sampling, samplers=1, prompts=2, scoring=0.0)
    with simulated.looped(run, lambda line: None, local=True) as looped:
        simulated.steps(looped, 2, staleness=1, prompts=2)
        spent = loop.alone(looped)
        assert spent.keys() == {"samplers", "scorers", "learner"} and all(value > 0 for value in spent.values())
        assert looped.progress.step == 3
        assert len(simulated.steps(looped, 2, staleness=1, prompts=2)) == 2 and looped.progress.step == 5


def test_the_work_of_a_step_is_shared_by_the_samplers():
    one, four = grow.sleeps(1, 16), grow.sleeps(4, 16)
    sampling = 16 * IMAGES * STEPS * simulated.Sampling.sample
    assert one - four == pytest.approx(0.75 * sampling)
    assert grow.sleeps(4, 17) - grow.sleeps(4, 16) > sampling / 16  # one more round for one group more


def test_loop_and_grow_measure_the_same_whatever_the_config():
    assert loop.measured_on(None) == loop.measured_on(
        simulated.run(simulated.Sampling, samplers=1, prompts=1, scoring=0)
    )
    assert grow.measured_on(None).workers.samplers.workers == max(grow.SAMPLERS)
