"""Dispatcher: groups move between the stages; none counts that was sampled with other weights than its task names."""

from dataclasses import replace

import pytest

from pcpo_ray.data import prompts
from pcpo_ray.data.tasks import evaluation_tasks
from pcpo_ray.errors import TrainingError
from pcpo_ray.training.dispatcher import Dispatcher, trouble
from pcpo_ray.training.local import LocalStages
from tests.support import small


@pytest.fixture
def run(small_sd):
    return small.run(small_sd, evaluation__count=1)


@pytest.fixture
def stages(run):
    found = LocalStages(run)
    yield found
    found.close()


def test_a_rollout_of_other_weights_ends_the_run_with_both_checksums(run, stages):
    dispatcher = Dispatcher(run, stages, event=lambda kind, **details: None, say=pytest.fail)
    published = dispatcher.publish(oldest=0)
    tasks = evaluation_tasks(run, prompts.load(run.prompts, seed=0), 0)
    dispatcher.submit(tasks)
    (scored,) = dispatcher.gather(tasks)
    assert scored.rollout.checksum == published.checksum and dispatcher.versions == {"sampler-0": 0}
    collect = stages.samplers.collect
    # as one says that has kept the weights of another life
    stages.samplers.collect = lambda: [replace(rollout, checksum="0123456789abcdef") for rollout in collect()]
    dispatcher.submit(tasks)
    with pytest.raises(TrainingError) as caught:
        dispatcher.gather(tasks)
    assert str(caught.value) == (
        f"sampler-0 sampled with weights of checksum 0123456789abcdef; version 0 has {published.checksum}"
    )


def test_checksums_of_versions_no_longer_needed_are_forgotten(run, stages):
    dispatcher = Dispatcher(run, stages, event=lambda kind, **details: None, say=pytest.fail)
    published = dispatcher.publish(oldest=0)
    assert dispatcher.checksums == {(0, False): published.checksum}
    dispatcher.checksums[-1, False] = "older"
    dispatcher.publish(oldest=0)
    assert dispatcher.checksums == {(0, False): published.checksum}


def test_missing_scores_are_one_short_line_with_each_cause_once():
    long = "ValueError: " + "no face\n" * 99 + "(/home/me/my_rewards.py, line 4)"
    line = trouble("missing_scores", {"step": 3, "prompt": "a cat; " * 40, "causes": {"a": long, "b": long, "c": "x"}})
    assert line.startswith("scores are missing, step 3, 'a cat; ") and "\n" not in line and len(line) < 400
    assert line.count("a, b: ValueError") == 1 and "(/home/me/my_rewards.py, line 4); c: x" in line
