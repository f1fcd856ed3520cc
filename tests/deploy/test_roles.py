"""A run's workers and a cluster's groups fit: Ray's own autoscaler is asked what it would start for them."""

import copy
from collections import Counter

import pytest
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil

from tests.support import deploy_files

SUBMITS = [words for where, words in deploy_files.COMMANDS if words[0] == "submit"]
ENTRYPOINT = deploy_files.commands(deploy_files.JOB["spec"]["entrypoint"])[0]
FITTING = [
    ("rayjob", ENTRYPOINT),
    *(("raycluster", words) for words in SUBMITS),
    *(("cloud", words) for words in SUBMITS),
]


def autoscaling(cluster):
    match cluster:
        case "rayjob":
            found = {"metadata": deploy_files.JOB["metadata"], "spec": deploy_files.JOB["spec"]["rayClusterSpec"]}
            return _derive_autoscaling_config_from_ray_cr(found)
        case "raycluster":
            return _derive_autoscaling_config_from_ray_cr(deploy_files.CLUSTER)
        case "cloud":
            found = prepare_config(copy.deepcopy(deploy_files.CLOUD))
            validate_config(found)
            return found


def launched(cluster, demands):
    """How many nodes of each group the autoscaler would start, and what it finds no place for."""
    settings = AutoscalingConfig(autoscaling(cluster), skip_content_hash=True)
    reply = ResourceDemandScheduler().schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=settings.get_node_type_configs(),
            max_num_nodes=settings.get_max_num_nodes(),
            resource_requests=ResourceRequestUtil.group_by_count(demands),
        )
    )
    return Counter({request.instance_type: request.count for request in reply.to_launch}), reply


def demand(role):
    return ResourceRequestUtil.make({"CPU": role.cpus, "GPU": role.gpus, **role.resources})


def demands(workers, samplers, scorers):
    return [
        demand(workers.learner),
        *[demand(workers.samplers)] * samplers,
        *[demand(workers.scorers)] * scorers,
    ]


@pytest.mark.parametrize(("cluster", "words"), FITTING)
def test_each_worker_gets_a_node_of_its_role(cluster, words):
    workers = deploy_files.run_of(deploy_files.parse(words)).workers
    found, reply = launched(cluster, demands(workers, workers.samplers.workers, workers.scorers.workers))
    assert found == {"learner": 1, "sampler": workers.samplers.workers, "scorer": workers.scorers.workers}
    assert not reply.infeasible_resource_requests


@pytest.mark.parametrize(("cluster", "words"), FITTING)
def test_the_cluster_grows_to_the_most_samplers_the_run_may_want(cluster, words):
    workers = deploy_files.run_of(deploy_files.parse(words)).workers
    assert workers.samplers.max
    found, reply = launched(cluster, demands(workers, workers.samplers.max, 1))
    assert found["sampler"] == workers.samplers.max
    assert not reply.infeasible_resource_requests
    found, reply = launched(cluster, demands(workers, workers.samplers.max + 1, 1))
    assert found["sampler"] == workers.samplers.max
    assert len(reply.infeasible_resource_requests) == 1


@pytest.mark.parametrize("cluster", ["rayjob", "raycluster", "cloud"])
def test_without_a_run_only_the_learner_is_there(cluster):
    found, _ = launched(cluster, [])
    assert found == {"learner": 1}


@pytest.mark.parametrize("cluster", ["rayjob", "raycluster", "cloud"])
def test_the_head_has_no_cpu_for_workers(cluster):
    found = autoscaling(cluster)
    assert found["available_node_types"][found["head_node_type"]]["resources"]["CPU"] == 0


def test_the_first_nodes_may_take_as_long_as_the_run_waits_for_them():
    for _, words in FITTING:
        assert deploy_files.run_of(deploy_files.parse(words)).workers.start_timeout >= 1800


def test_the_cloud_installs_nothing_when_it_starts():
    found = autoscaling("cloud")
    assert not [found[key] for key in ("setup_commands", "head_setup_commands", "worker_setup_commands") if found[key]]


def test_the_clouds_head_starts_with_no_cpus_and_its_dashboard_on_loopback():
    command = deploy_files.CLOUD["head_start_ray_commands"][-1]
    assert "--num-cpus=0" in command
    assert "--dashboard-host=127.0.0.1" in command
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in command


def test_only_samplers_of_the_cloud_are_spot_machines():
    spot = {
        name
        for name, kind in deploy_files.CLOUD["available_node_types"].items()
        if kind["node_config"].get("InstanceMarketOptions", {}).get("MarketType") == "spot"
    }
    assert spot == {"sampler"}
