"""The Kubernetes manifests: valid for the real schemas, consistent among themselves, and confined."""

import copy
import functools
import json
import shutil
import subprocess

import jsonschema
import kubernetes_validate
import pytest
import yaml
from ray.autoscaler._private.constants import AUTOSCALER_METRIC_PORT
from ray.autoscaler._private.kuberay.utils import parse_quantity
from ray.dashboard.consts import DASHBOARD_METRIC_PORT

import pcpo_ray
from tests.support import ROOT, deploy_files

SCHEMAS = ROOT.parent / "shared" / "data" / "kuberay"
KUBERNETES = "1.34"
OWN = {"namespace.yaml": "Namespace", "storage.yaml": "PersistentVolumeClaim", "network.yaml": "NetworkPolicy"}
MONITOR = deploy_files.read("kuberay/podmonitor.yaml")
ROCKSDB = deploy_files.read("kuberay-rocksdb/kustomization.yaml")
CLUSTER = deploy_files.CLUSTER["spec"]
GROUPS = {group["groupName"]: group for group in CLUSTER["workerGroupSpecs"]}
NODES = {"head": CLUSTER["headGroupSpec"], **GROUPS}
SPOT = {
    "cloud.google.com/gke-spot": "true",
    "eks.amazonaws.com/capacityType": "SPOT",
    "karpenter.sh/capacity-type": "spot",
    "kubernetes.azure.com/scalesetpriority": "spot",
}

nodes = pytest.mark.parametrize("node", NODES)


def pod(node):
    return NODES[node]["template"]["spec"]


def container(node):
    (only,) = pod(node)["containers"]
    return only


def strict(schema):
    """A custom resource's schema that refuses fields it does not know, as `kubectl apply --validate=strict` does."""
    schema = copy.deepcopy(schema)
    for found in deploy_files.mappings(schema):
        open_ended = found.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in found
        if isinstance(found.get("properties"), dict) and found.get("type") == "object" and not open_ended:
            found["additionalProperties"] = False
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


@functools.cache
def operators_schema(kind):
    path = SCHEMAS / f"ray.io_{kind.lower()}s.yaml"
    if not path.is_file():
        pytest.skip("KubeRay's custom resource definitions are not beside the repository (../shared/data/kuberay)")
    # a megabyte: the loader in C
    versions = yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader)["spec"]["versions"]
    (v1,) = [version for version in versions if version["name"] == "v1"]
    return strict(v1["schema"]["openAPIV3Schema"])


def merged(base, patch):
    """Of mappings only, as the patches here are."""
    if not (isinstance(base, dict) and isinstance(patch, dict)):
        return patch
    return {**base, **{key: merged(base.get(key), value) for key, value in patch.items()}}


def with_rocksdb():
    (patch,) = ROCKSDB["patches"]
    assert patch["target"] == {"kind": deploy_files.CLUSTER["kind"], "name": deploy_files.CLUSTER["metadata"]["name"]}
    return merged(deploy_files.CLUSTER, yaml.safe_load(patch["patch"]))


# -- the real schemas --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "manifest", [deploy_files.JOB, deploy_files.CLUSTER, with_rocksdb()], ids=["job", "cluster", "rocksdb"]
)
def test_kuberay_takes_the_manifest(manifest):
    jsonschema.validate(manifest, operators_schema(manifest["kind"]))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("authOptions", "mode"), "tokens"),
        (("authOptions", "secret"), "mine"),
        (("headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("autoscalerOptions", "idleTimeoutSeconds"), "300"),
    ],
)
def test_the_schema_that_the_tests_use_refuses_mistakes(path, value):
    manifest = copy.deepcopy(deploy_files.CLUSTER)
    node = manifest["spec"]
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(manifest, operators_schema("RayCluster"))


@pytest.mark.parametrize(("name", "kind"), OWN.items())
def test_kubernetes_takes_the_manifest(name, kind):
    manifest = deploy_files.read(f"kuberay/{name}")
    assert manifest["kind"] == kind
    kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


@nodes
def test_kubernetes_takes_the_pods(node):
    template = NODES[node]["template"]
    found = {"apiVersion": "v1", "kind": "Pod", "metadata": {**template["metadata"], "name": node}, "spec": pod(node)}
    kubernetes_validate.validate(found, KUBERNETES, strict=True)


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed")
@pytest.mark.parametrize(
    ("folder", "expected"), [("kuberay", deploy_files.CLUSTER), ("kuberay-rocksdb", with_rocksdb())]
)
def test_kustomize_builds_what_stays(folder, expected):
    command = ["kubectl", "kustomize", str(deploy_files.DEPLOY / folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    built = {found["kind"]: found for found in yaml.safe_load_all(done.stdout)}
    assert set(built) == {*OWN.values(), "PodMonitor", "RayCluster"}
    assert built["RayCluster"] == expected


# -- what the operator checks itself -----------------------------------------------------------------------------------


def test_a_job_has_the_cluster_that_runs_are_submitted_to():
    assert deploy_files.JOB["spec"]["rayClusterSpec"] == CLUSTER


def test_manifests_name_the_pinned_ray_and_this_version_of_the_image():
    assert CLUSTER["rayVersion"] == deploy_files.pinned("ray")
    tags = {container(node)["image"].rpartition("/")[2] for node in NODES}
    assert tags == {f"pcpo-ray:{pcpo_ray.__version__}-gpu"}


def test_a_job_comes_back_and_then_makes_room():
    spec = deploy_files.JOB["spec"]
    assert spec["submissionMode"] == "HTTPMode"
    assert spec["backoffLimit"] > 0
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] > 0
    assert spec["preRunningDeadlineSeconds"] > 0
    assert len(deploy_files.JOB["metadata"]["name"]) <= 47


def test_the_autoscaler_is_the_second_and_pods_are_not_restarted_in_place():
    assert CLUSTER["enableInTreeAutoscaling"] is True
    assert CLUSTER["autoscalerOptions"]["version"] == "v2"
    assert not [node for node in NODES if pod(node).get("restartPolicy", "Never") != "Never"]


@nodes
def test_resources_are_given_in_one_place(node):
    params = {"num-cpus", "num-gpus", "memory", "resources"} & set(NODES[node]["rayStartParams"])
    assert not (params and NODES[node].get("resources"))


def test_the_head_takes_no_workers_and_groups_have_the_size_of_their_role():
    assert CLUSTER["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert GROUPS["learner"]["minReplicas"] == GROUPS["learner"]["replicas"] == GROUPS["learner"]["maxReplicas"] == 1
    assert GROUPS["sampler"]["minReplicas"] == 0
    assert {name: group["resources"] for name, group in GROUPS.items()} == {name: {name: "1"} for name in GROUPS}


def test_rocksdb_is_all_that_its_variant_adds():
    spec = with_rocksdb()["spec"]
    assert spec.pop("gcsFaultToleranceOptions") == {"backend": "rocksdb", "storage": {"size": "10Gi"}}
    assert spec == CLUSTER


# -- machines ----------------------------------------------------------------------------------------------------------


def test_samplers_tolerate_and_prefer_spot_machines():
    tolerated = {found["key"] for found in pod("sampler")["tolerations"]}
    assert {"cloud.google.com/gke-spot", "kubernetes.azure.com/scalesetpriority"} <= tolerated
    terms = pod("sampler")["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    wished = [term for found in terms for term in found["preference"]["matchExpressions"]]
    assert wished == [{"key": key, "operator": "In", "values": [value]} for key, value in SPOT.items()]


@pytest.mark.parametrize("node", ["head", "learner", "scorer"])
def test_nothing_else_runs_on_spot_machines(node):
    affinity = pod(node)["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    (term,) = affinity["nodeSelectorTerms"]
    refused = term["matchExpressions"]
    assert refused == [{"key": key, "operator": "NotIn", "values": [value]} for key, value in SPOT.items()]
    assert not {found["key"] for found in pod(node).get("tolerations", [])} & set(SPOT)


@nodes
def test_every_container_says_what_it_needs_and_gets_no_more(node):
    found = container(node)["resources"]
    assert {"cpu", "memory"} <= set(found["limits"])
    assert found["requests"] == found["limits"]
    assert ("nvidia.com/gpu" in found["limits"]) == (node != "head")


def test_the_autoscaler_says_what_it_needs_too():
    found = CLUSTER["autoscalerOptions"]["resources"]
    assert found["requests"] == found["limits"]
    assert parse_quantity(found["limits"]["memory"]) >= parse_quantity("1Gi")


@nodes
def test_shared_memory_holds_the_object_store_and_leaves_as_much_again(node):
    (mount,) = [mount["name"] for mount in container(node)["volumeMounts"] if mount["mountPath"] == "/dev/shm"]
    (volume,) = [volume["emptyDir"] for volume in pod(node)["volumes"] if volume["name"] == mount]
    assert volume["medium"] == "Memory"
    shared = parse_quantity(volume["sizeLimit"])
    assert shared >= int(NODES[node]["rayStartParams"]["object-store-memory"])
    assert 2 * shared <= parse_quantity(container(node)["resources"]["limits"]["memory"])


@nodes
def test_every_node_sees_the_run_folders(node):
    claim = deploy_files.read("kuberay/storage.yaml")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    (mount,) = [mount["name"] for mount in container(node)["volumeMounts"] if mount["mountPath"] == "/runs"]
    (volume,) = [volume for volume in pod(node)["volumes"] if volume["name"] == mount]
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    parameters = deploy_files.parse(deploy_files.commands(deploy_files.JOB["spec"]["entrypoint"])[0])
    assert str(parameters["runs"]) == "/runs"


@pytest.mark.parametrize("node", GROUPS)
def test_a_node_told_to_leave_has_longer_than_ray_takes_to_drain_it(node):
    from ray._private.ray_constants import RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S

    assert pod(node)["terminationGracePeriodSeconds"] > RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S


# -- ports and labels --------------------------------------------------------------------------------------------------


def ports(node):
    return {port["name"]: port["containerPort"] for port in container(node)["ports"]}


def test_ports_are_those_that_ray_listens_on():
    from ray._private.ray_constants import DEFAULT_DASHBOARD_PORT, DEFAULT_PORT

    assert ports("head") == {
        "gcs": DEFAULT_PORT,
        "dashboard": DEFAULT_DASHBOARD_PORT,
        "metrics": 8080,  # --metrics-export-port, which the operator sets
        "as-metrics": AUTOSCALER_METRIC_PORT,
        "dash-metrics": DASHBOARD_METRIC_PORT,
    }
    assert all(ports(node) == {"metrics": 8080} for node in GROUPS)


def test_prometheus_reads_every_metrics_port_and_may():
    scraped = {endpoint["port"] for endpoint in MONITOR["spec"]["podMetricsEndpoints"]}
    assert scraped == {"metrics", "as-metrics", "dash-metrics"} <= set(ports("head"))
    rules = deploy_files.read("kuberay/network.yaml")["spec"]["ingress"]
    opened = [{port["port"] for port in rule["ports"]} for rule in rules if "ports" in rule]
    assert sorted(opened, key=len) == [{"dashboard"}, scraped]


def test_policy_and_monitor_select_the_pods():
    labels = [NODES[node]["template"]["metadata"]["labels"] for node in NODES]
    given = {"ray.io/is-ray-node": "yes"}  # by the operator
    selectors = [
        MONITOR["spec"]["selector"]["matchLabels"],
        deploy_files.read("kuberay/network.yaml")["spec"]["podSelector"]["matchLabels"],
    ]
    for selector in selectors:
        assert all(selector.items() <= {**found, **given}.items() for found in labels)


def test_only_rays_pods_reach_all_ports():
    policy = deploy_files.read("kuberay/network.yaml")["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    everywhere = [rule for rule in policy["ingress"] if "ports" not in rule]
    assert everywhere == [{"from": [{"podSelector": policy["podSelector"]}]}]


def test_all_is_in_one_namespace():
    name = deploy_files.read("kuberay/namespace.yaml")["metadata"]["name"]
    found = [
        deploy_files.JOB,
        deploy_files.CLUSTER,
        MONITOR,
        deploy_files.read("kuberay/storage.yaml"),
        deploy_files.read("kuberay/network.yaml"),
    ]
    assert {manifest["metadata"]["namespace"] for manifest in found} == {name}


def test_every_manifest_is_applied_by_kustomize_or_by_the_readme():
    listed = deploy_files.read("kuberay/kustomization.yaml")["resources"]
    there = {path.name for path in (deploy_files.DEPLOY / "kuberay").glob("*.yaml")}
    assert there == {*listed, "kustomization.yaml", "rayjob.yaml"}
    assert all(
        f"deploy/kuberay/{name}" in deploy_files.README for name in there - {"kustomization.yaml", "raycluster.yaml"}
    )


# -- confinement: Kubernetes' restricted profile -----------------------------------------------------------------------


def test_the_namespace_enforces_the_restricted_profile():
    labels = deploy_files.read("kuberay/namespace.yaml")["metadata"]["labels"]
    assert labels == {"pod-security.kubernetes.io/enforce": "restricted"}


def confined(context):
    assert context == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


@nodes
def test_pods_are_not_root_and_confined(node):
    context = pod(node)["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["runAsUser"] == context["runAsGroup"] == context["fsGroup"] == deploy_files.UID
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    confined(container(node)["securityContext"])
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & set(pod(node))
    assert all(set(volume) - {"name"} <= {"emptyDir", "persistentVolumeClaim"} for volume in pod(node)["volumes"])


def test_the_autoscaler_is_confined():
    confined(CLUSTER["autoscalerOptions"]["securityContext"])


@pytest.mark.parametrize("node", GROUPS)
def test_workers_cannot_talk_to_kubernetes(node):
    assert pod(node)["automountServiceAccountToken"] is False


def test_the_token_is_on_and_in_no_manifest():
    assert CLUSTER["authOptions"] == {"mode": "token"}
    names = {
        found["name"] for found in deploy_files.mappings([deploy_files.JOB, deploy_files.CLUSTER]) if "name" in found
    }
    assert not {name for name in names if name.startswith("RAY_AUTH")}
    assert "TOKEN" not in json.dumps([deploy_files.JOB, deploy_files.CLUSTER])
