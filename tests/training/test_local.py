"""The stages in this process: one sampler, one scorer and one learner, which share the published versions."""

import gc

import pytest

from pcpo_ray.data import prompts
from pcpo_ray.data.tasks import evaluation_tasks
from pcpo_ray.errors import ClusterError, TrainingError
from pcpo_ray.training.local import LocalStages
from tests.support import small


@pytest.fixture
def run(small_sd):
    return small.run(small_sd, evaluation__count=1)


@pytest.fixture
def stages(run):
    return LocalStages(run)


def test_samplers_load_what_the_learner_published(run, stages):
    published = stages.publish(oldest=0)
    assert list(stages.versions) == [(0, False)] and published.bytes > 0
    (task,) = evaluation_tasks(run, prompts.load(run.prompts, seed=0), 0)
    stages.samplers.submit(task)
    stages.wait(1.0)
    (rollout,) = stages.samplers.collect()
    assert rollout.checksum == published.checksum


def test_one_process_holds_one_network_and_no_copy_of_its_weights(small_sd):
    from diffusers import UNet2DConditionModel

    for staleness in (0, 1):
        gc.collect()
        before = {id(one) for one in gc.get_objects() if isinstance(one, UNet2DConditionModel)}
        stages = LocalStages(small.run(small_sd, evaluation__count=1, rollout__max_staleness=staleness))
        held = [one for one in gc.get_objects() if isinstance(one, UNet2DConditionModel) and id(one) not in before]
        assert len(held) == 1 and stages.samplers.sampler.policy is stages.learner.learner.policy
        stages.publish(oldest=0)
        # an older version is asked for later only where batches are sampled ahead
        assert len(stages.versions[0, False].buckets) == staleness


def test_a_task_of_a_version_that_was_not_published_is_refused(run, stages):
    (task,) = evaluation_tasks(run, prompts.load(run.prompts, seed=0), 3)
    stages.publish(oldest=0)
    with pytest.raises(TrainingError, match=r"asks for \(version, averaged\) \(3, False\); published are"):
        stages.samplers.submit(task)


def test_versions_that_nobody_asks_for_any_more_are_forgotten(stages):
    stages.publish(oldest=0)
    stages.learner.learner.version = 4
    stages.publish(oldest=4)
    assert list(stages.versions) == [(4, False)]


def test_one_process_has_no_workers_to_resize_or_to_lose(stages):
    with pytest.raises(ClusterError, match="one sampler and one scorer; train on Ray"):
        stages.resize(samplers=2)
    with pytest.raises(ClusterError, match="has no sampler to lose; train on Ray"):
        stages.inject_fault("sampler")
    assert {role: pool.wanted for role, pool in stages.pool_status().items()} == {"samplers": 1, "scorers": 1}
