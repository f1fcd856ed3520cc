"""A driver that is killed fires an alert in a real Prometheus; runs that end on purpose fire none."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request

import pytest
import yaml

from pcpo_ray.config import files
from tests.chaos.nodes import Nodes, free_port
from tests.support import ROOT, small, warm
from tests.support.processes import ENVIRONMENT

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not shutil.which("prometheus"), reason="prometheus is not installed"),
]


@pytest.fixture
def nodes():
    """A Ray that outlives the runs on it, as on a cluster; it tells its metrics every 2 s."""
    made = Nodes()
    made.environment |= {name: os.environ[name] for name in warm.environment("")}
    made.environment |= {"RAY_metrics_report_interval_ms": "2000", "RAY_raylet_start_wait_time_s": "240"}
    with made:
        made.environment["RAY_ADDRESS"] = made.address
        yield made


@pytest.fixture
def prometheus(tmp_path):
    """Starts a Prometheus with the shipped rules; a run need be gone for 4 s, not for 2 minutes."""
    jobs = []

    def start(scraped):
        rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "rules.yaml").read_text())
        rules["groups"][0]["interval"] = "1s"
        (rule,) = [rule for rule in rules["groups"][0]["rules"] if rule.get("alert") == "PcpoRunVanished"]
        rule["for"] = "4s"
        (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
        settings = {"global": {"scrape_interval": "2s"}, "rule_files": ["rules.yaml"], "scrape_configs": [scraped]}
        (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(settings))
        address = f"127.0.0.1:{free_port()}"
        words = [
            "prometheus",
            f"--config.file={tmp_path / 'prometheus.yml'}",
            f"--storage.tsdb.path={tmp_path / 'data'}",
        ]
        with (tmp_path / "prometheus.log").open("w") as log:
            jobs.append(subprocess.Popen([*words, f"--web.listen-address={address}"], stdout=log, stderr=log))

        def query(expression):
            """The values that Prometheus has now, by run."""
            url = f"http://{address}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
            with contextlib.suppress(urllib.error.URLError), urllib.request.urlopen(url, timeout=30) as answer:
                return {one["metric"].get("run", ""): one["value"][1] for one in json.load(answer)["data"]["result"]}
            return {}

        return query

    yield start
    for job in jobs:
        job.terminate()
        job.wait(timeout=60)


def within(seconds, look, why):
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, why
        time.sleep(1.0)
    return found


SEEN = 'max by (run) (ray_pcpo_started_seconds{run=~"whole|killed"})'
FIRING = 'ALERTS{alertname=~"PcpoRun.*",alertstate="firing"}'

DRIVER = """
import sys, time
from pcpo_ray.data.records import Event
from pcpo_ray.metrics.prometheus import Endpoint
from pcpo_ray.metrics.reporter import ExportingReporter
run, port = sys.argv[1], int(sys.argv[2])
reporter = ExportingReporter(run, Endpoint(port))
reporter.event(Event(time=time.time(), kind="started", details={}))
sys.stdin.readline()
reporter.event(Event(time=time.time(), kind="finished", details={}))
reporter.close()
"""


def test_a_killed_driver_in_one_process_is_told_from_one_that_finished(prometheus):
    ports = {name: free_port() for name in ("whole", "killed")}
    query = prometheus(
        {"job_name": "runs", "static_configs": [{"targets": [f"127.0.0.1:{port}" for port in ports.values()]}]}
    )
    jobs = {
        name: subprocess.Popen(
            [sys.executable, "-c", DRIVER, name, str(port)], stdin=subprocess.PIPE, cwd=ROOT, env=ENVIRONMENT
        )
        for name, port in ports.items()
    }
    try:
        within(120, lambda: set(query(SEEN)) == {"whole", "killed"}, "the drivers were not seen")
        time.sleep(5)  # as one that is scraped at intervals
        jobs["killed"].kill()
        jobs["whole"].communicate(b"\n", timeout=60)
        assert jobs["whole"].returncode == 0
        within(120, lambda: query(FIRING), f"no alert: {query(SEEN)}")
        within(60, lambda: not query(SEEN), "a gauge outlives its driver")
        time.sleep(8)  # both are gone for longer than the rule waits
        assert set(query(FIRING)) == {"killed"}
    finally:
        for job in jobs.values():
            job.kill()


def test_a_killed_driver_on_ray_is_told_from_one_that_finished(nodes, prometheus, small_sd, tmp_path):
    targets = nodes.folder / "node-0" / "prom_metrics_service_discovery.json"
    query = prometheus({"job_name": "ray", "file_sd_configs": [{"files": [str(targets)], "refresh_interval": "2s"}]})
    jobs = {}
    for name, steps in (("whole", 1), ("killed", 100_000)):
        path = tmp_path / f"{name}.yaml"
        run = small.run(small_sd, name=name, steps=steps, evaluation__every=1000, rewards=small.slow(0.3))
        path.write_text(files.dump(run))
        jobs[name] = nodes.start("train", path, "--runs", tmp_path / "runs")
    within(300, lambda: "killed" in query(SEEN), "the run was not seen")
    assert jobs["whole"].wait(timeout=300) == 0
    jobs["killed"].send_signal(signal.SIGKILL)
    jobs["killed"].wait(timeout=60)
    within(120, lambda: query(FIRING), f"no alert: {query('ray_pcpo_started_seconds')}")
    within(60, lambda: not query(SEEN), "a gauge outlives its driver")
    time.sleep(8)  # both are gone for longer than the rule waits
    assert set(query(FIRING)) == {"killed"}
    assert set(query('ray_pcpo_runs_ended_total{how="finished"}')) == {"whole"}
