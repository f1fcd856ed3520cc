"""One machine: what listens where, with which rights, and that Ray, Prometheus and Grafana find each other."""

import re
import shutil
import subprocess
from pathlib import PurePosixPath

import pytest
from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

import pcpo_ray
from tests.support import deploy_files

SERVICES = deploy_files.COMPOSE["services"]
RUN = SERVICES["run"]
PROMETHEUS = deploy_files.read("prometheus/prometheus.yml")
(SOURCE,) = deploy_files.read("grafana/provisioning/datasources/prometheus.yaml")["datasources"]
PROVIDERS = deploy_files.read("grafana/provisioning/dashboards/dashboards.yaml")["providers"]

services = pytest.mark.parametrize("service", SERVICES)


def mounts(service):
    """Where a service sees what: path -> (source, whether read-only)."""
    found = (entry.split(":") for entry in SERVICES[service]["volumes"])
    return {target: (source, rights == ["ro"]) for source, target, *rights in found}


def seen(service, path):
    """The source of a path in a service, and what lies below it."""
    for target, (source, _) in mounts(service).items():
        if PurePosixPath(path).is_relative_to(target):
            return source, str(PurePosixPath(path).relative_to(target))
    return None


@services
def test_only_loopback_listens(service):
    assert SERVICES[service]["ports"]
    for port in SERVICES[service]["ports"]:
        assert re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port)


@services
def test_nothing_is_root_or_privileged(service):
    found = SERVICES[service]
    user, _, group = str(found["user"]).partition(":")
    assert int(user) > 0
    assert int(group) > 0
    assert found["cap_drop"] == ["ALL"]
    assert found["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "network_mode", "pid", "ipc", "devices"} & set(found)
    assert not [source for source, _ in mounts(service).values() if "docker.sock" in source]


def test_the_run_has_the_images_user():
    assert RUN["user"] == f"{deploy_files.UID}:{deploy_files.UID}"


def test_the_token_is_on_and_asked_for():
    environment = RUN["environment"]
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAY_AUTH_TOKEN"].startswith("${RAY_AUTH_TOKEN:?")
    assert SERVICES["grafana"]["environment"]["GF_SECURITY_ADMIN_PASSWORD"].startswith("${GRAFANA_PASSWORD:?")


def test_the_readme_makes_every_secret_that_is_asked_for():
    asked = set(re.findall(r"\$\{(\w+):\?", (deploy_files.DEPLOY / "compose.yaml").read_text(encoding="utf-8")))
    (line,) = [
        line for block in deploy_files.blocks() for line in block.splitlines() if line.endswith("> deploy/.env)")
    ]
    assert asked <= set(re.findall(r"\w+", line))
    assert "umask 077" in line


@services
def test_images_are_pinned(service):
    assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+(-cpu)?", SERVICES[service]["image"])


@pytest.mark.parametrize(("compose", "target"), [(deploy_files.COMPOSE, "cpu"), (deploy_files.COMPOSE_GPU, "gpu")])
def test_the_run_is_built_from_this_version_and_its_target(compose, target):
    run = compose["services"]["run"]
    assert run["image"] == f"pcpo-ray:{pcpo_ray.__version__}-{target}"
    assert run["build"]["target"] == target
    assert f" AS {target}\n" in deploy_files.DOCKERFILE


@services
def test_what_is_mounted_is_there(service):
    for source, read_only in mounts(service).values():
        if source.startswith("."):
            assert (deploy_files.DEPLOY / source).is_dir()
            assert read_only
        else:
            assert source in deploy_files.COMPOSE["volumes"]


def test_a_stopped_run_has_time_to_save_and_a_failed_one_starts_again():
    assert RUN["restart"] == "on-failure"
    assert RUN["stop_grace_period"] == "5m"
    assert RUN["init"] is True


def test_run_folders_and_rays_own_outlive_the_container():
    parameters = deploy_files.parse(deploy_files.commands(RUN["command"][-1])[0])
    assert seen("run", str(parameters["runs"])) == ("runs", ".")
    assert seen("run", "/tmp/ray") == ("ray", ".")


def test_the_gpu_file_changes_only_who_computes_where():
    scripts = [
        compose["services"]["run"]["command"][-1] for compose in (deploy_files.COMPOSE, deploy_files.COMPOSE_GPU)
    ]
    assert scripts[0].splitlines()[:-1] == scripts[1].splitlines()[: len(scripts[0].splitlines()) - 1]
    cpu, gpu = (deploy_files.commands(script)[0] for script in scripts)
    assert gpu[: len(cpu)] == cpu
    assert all(word.startswith("workers.") for word in gpu[len(cpu) :])
    workers = deploy_files.run_of(deploy_files.parse(gpu)).workers
    gpus = [role.gpus * getattr(role, "workers", 1) for role in (workers.samplers, workers.scorers, workers.learner)]
    assert all(gpus)
    assert sum(gpus) == pytest.approx(1.0)


# -- who finds whom ----------------------------------------------------------------------------------------------------


def test_prometheus_reads_the_file_that_rays_head_writes():
    (job,) = PROMETHEUS["scrape_configs"]
    (discovery,) = job["file_sd_configs"]
    assert discovery["files"] == [f"/tmp/ray/{PROMETHEUS_SERVICE_DISCOVERY_FILE}"]
    assert seen("prometheus", discovery["files"][0]) == seen("run", discovery["files"][0])


def test_prometheus_finds_its_configuration_and_rules():
    (option,) = [word for word in SERVICES["prometheus"]["command"] if word.startswith("--config.file=")]
    source, below = seen("prometheus", option.partition("=")[2])
    assert (deploy_files.DEPLOY / source / below).is_file()
    for rules in PROMETHEUS["rule_files"]:
        assert (deploy_files.DEPLOY / source / rules).is_file(), f"there is no deploy/prometheus/{rules}"


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")
def test_promtool_takes_the_configuration():
    path = deploy_files.DEPLOY / "prometheus" / "prometheus.yml"
    done = subprocess.run(["promtool", "check", "config", path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")
def test_promtool_takes_the_readmes_configuration_for_prometheus_elsewhere(tmp_path):
    (block,) = deploy_files.blocks("yaml")
    token = tmp_path / "token"
    token.write_text("a token", encoding="utf-8")
    path = tmp_path / "prometheus.yml"
    path.write_text(block.replace("/etc/prometheus/ray_token", str(token)), encoding="utf-8")
    done = subprocess.run(["promtool", "check", "config", path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_grafana_and_ray_ask_the_prometheus_that_is_there():
    assert SOURCE["url"] == RUN["environment"]["RAY_PROMETHEUS_HOST"] == "http://prometheus:9090"
    assert SOURCE["name"] == RUN["environment"]["RAY_PROMETHEUS_NAME"]
    assert "127.0.0.1:9090:9090" in SERVICES["prometheus"]["ports"]


def test_rays_dashboard_may_show_grafanas_panels():
    environment = SERVICES["grafana"]["environment"]
    assert environment["GF_SECURITY_ALLOW_EMBEDDING"] == environment["GF_AUTH_ANONYMOUS_ENABLED"] == "true"
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert RUN["environment"]["RAY_GRAFANA_HOST"] == "http://grafana:3000"
    assert RUN["environment"]["RAY_GRAFANA_IFRAME_HOST"] == "http://127.0.0.1:3000"
    assert "127.0.0.1:3000:3000" in SERVICES["grafana"]["ports"]


def test_grafana_finds_its_provisioning_our_dashboards_and_rays():
    assert seen("grafana", "/etc/grafana/provisioning") == ("./grafana/provisioning", ".")
    paths = {provider["name"]: provider["options"]["path"] for provider in PROVIDERS}
    assert seen("grafana", paths["pcpo-ray"]) == ("./grafana", ".")
    written = RUN["environment"]["RAY_METRICS_GRAFANA_DASHBOARD_OUTPUT_DIR"]
    assert paths["ray"] == written
    assert seen("grafana", written) == seen("run", written)


@pytest.mark.parametrize(
    "name",
    [
        "RAY_PROMETHEUS_HOST",
        "RAY_PROMETHEUS_NAME",
        "RAY_GRAFANA_HOST",
        "RAY_GRAFANA_IFRAME_HOST",
        "RAY_METRICS_GRAFANA_DASHBOARD_OUTPUT_DIR",
    ],
)
def test_ray_knows_the_variables_that_it_is_given(name):
    from ray.dashboard.modules.metrics import metrics_head

    assert name in vars(metrics_head).values()
