"""A real Prometheus scrapes a real run on Ray: every metric arrives, every panel and alert can be evaluated."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil
import pytest
import torch
import yaml

from pcpo_ray.config import files
from pcpo_ray.metrics.catalogue import CATALOGUE
from pcpo_ray.metrics.dashboards.alerts import ALERTS, RECORDED
from pcpo_ray.metrics.dashboards.cluster import CLUSTER
from pcpo_ray.metrics.dashboards.training import TRAINING
from tests.support import ROOT, small
from tests.support.processes import ENVIRONMENT, command

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]

RULES = ROOT / "deploy" / "prometheus" / "rules.yaml"
ELSEWHERE = ("pcpo_runs_ended", "pcpo_skipped_gradients", "pcpo_judge_tokens")
GOING = [metric for metric in CATALOGUE if metric.name not in ELSEWHERE]
"""The metrics that a run which goes on has, if all of its gradients are finite."""

LIMIT = 300.0
"""Seconds in which everything must have arrived."""


@pytest.fixture(scope="module", autouse=True)
def prometheus_is_there():
    if shutil.which("prometheus") and shutil.which("promtool"):
        return
    if os.environ.get("CI"):
        pytest.fail("prometheus and promtool are not installed; .ci/run installs them")
    pytest.skip("prometheus and promtool are not installed (Debian: apt-get install prometheus)")


# -- the rules by themselves -------------------------------------------------------------------------------------------


def test_promtool_accepts_the_rules():
    done = subprocess.run(["promtool", "check", "rules", RULES], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(ALERTS) + len(RECORDED)} rules found" in done.stdout


# Series of one run, a value a minute, written as promtool wants them: `0+3x60` is 0, 3, 6, ... for 60 minutes.
WELL = {
    'ray_pcpo_step{run="r"}': "0+1x60",
    'ray_pcpo_steps{run="r"}': "500x60",
    'ray_pcpo_tasks_total{run="r",role="samplers",outcome="done",reason="none"}': "3+3x60",
    'ray_pcpo_tasks_total{run="r",role="scorers",outcome="done",reason="none"}': "3+3x60",
    'ray_pcpo_tasks_total{run="r",role="scorers",outcome="missing",reason="clip"}': "_x45 1x30",
    'ray_pcpo_first_log_ratio{run="r"}': "0x60",
    'ray_pcpo_clip_fraction{run="r"}': "0.3x60",
    'ray_pcpo_moved_fraction{run="r"}': "0.98x60",
    'ray_pcpo_skipped_gradients_total{run="r"}': "0x20 1x40",
    'ray_pcpo_mean_missing{run="r",reward="reward",purpose="train"}': "0x60",
    'ray_pcpo_evaluation_score{run="r",reward="diversity"}': "0.4x30 0.35x30",
    'ray_pcpo_group_deviation{run="r"}': "1x30 0.5x30",
    'ray_pcpo_alarm{run="r",monitor="hacking"}': "0x60",
    'ray_pcpo_sampler_behind{run="r"}': "2x60",
    'ray_pcpo_max_staleness{run="r"}': "1x60",
    'ray_pcpo_restarts_total{run="r",role="samplers",cause="died"}': "_x20 2x40",
    'ray_object_store_memory{SessionName="s",Location="SPILLED"}': "0x60",
    'ray_pcpo_started_seconds{run="r",driver="b",WorkerId="2"}': "2000x75",
    # ended runs: one finished, one stopped and resumed, one killed and resumed that then met an alarm
    'ray_pcpo_started_seconds{run="finished",driver="a",WorkerId="1"}': "1000x20",
    'ray_pcpo_runs_ended_total{run="finished",driver="a",how="finished",WorkerId="1"}': "_x20 1x2",
    'ray_pcpo_started_seconds{run="stopped",driver="a",WorkerId="1"}': "1000x10",
    'ray_pcpo_runs_ended_total{run="stopped",driver="a",how="stopped",WorkerId="1"}': "_x10 1x70",
    'ray_pcpo_started_seconds{run="stopped",driver="b",WorkerId="2"}': "_x20 2000x70",
    'ray_pcpo_started_seconds{run="killed",driver="a",WorkerId="1"}': "1000x10",
    'ray_pcpo_started_seconds{run="killed",driver="b",WorkerId="2"}': "_x12 2000x20",
    'ray_pcpo_runs_ended_total{run="killed",driver="b",how="alarm",WorkerId="2"}': "_x32 1x70",
    'ray_pcpo_runs_ended_total{run="long ago",driver="a",how="failed",WorkerId="3"}': "_x5 1x70",
}
PROVOKED = {
    "PcpoRunVanished": {'ray_pcpo_started_seconds{run="stopped",driver="b",WorkerId="2"}': "_x20 2000x15"},
    "PcpoRunFailed": {
        'ray_pcpo_started_seconds{run="finished",driver="a",WorkerId="1"}': "1000x40",
        'ray_pcpo_runs_ended_total{run="finished",driver="a",how="finished",WorkerId="1"}': "_x75",
        'ray_pcpo_runs_ended_total{run="finished",driver="a",how="failed",WorkerId="1"}': "_x45 1x1",
    },
    "PcpoNoProgress": {
        'ray_pcpo_tasks_total{run="r",role="samplers",outcome="done",reason="none"}': "3+3x10 33x50",
        'ray_pcpo_tasks_total{run="r",role="scorers",outcome="done",reason="none"}': "3+3x10 33x50",
        'ray_pcpo_tasks_total{run="r",role="scorers",outcome="missing",reason="clip"}': "_x60",
        'ray_pcpo_step{run="r"}': "7x60",
    },
    "PcpoFirstRatioNotOne": {'ray_pcpo_first_log_ratio{run="r"}': "0x40 0.0000003x30"},
    "PcpoClipFractionHigh": {'ray_pcpo_clip_fraction{run="r"}': "0.3x30 0.7x40"},
    "PcpoWeightsDoNotMove": {'ray_pcpo_moved_fraction{run="r"}': "0.98x40 0.001x20"},
    "PcpoGradientsSkipped": {'ray_pcpo_skipped_gradients_total{run="r"}': "0x45 2x15"},
    "PcpoRewardNotANumber": {'ray_pcpo_mean_missing{run="r",reward="reward",purpose="train"}': "0x50 1x9"},
    "PcpoScoresMissing": {
        'ray_pcpo_tasks_total{run="r",role="scorers",outcome="missing",reason="clip"}': "_x45 5x30",
    },
    "PcpoAlarm": {'ray_pcpo_alarm{run="r",monitor="hacking"}': "0x50 1x9"},
    "PcpoGroupDeviationCollapsed": {'ray_pcpo_group_deviation{run="r"}': "1x20 0.05x40"},
    "PcpoDiversityFalling": {'ray_pcpo_evaluation_score{run="r",reward="diversity"}': "0.4x30 0.3x30"},
    "PcpoSamplerBehind": {'ray_pcpo_sampler_behind{run="r"}': "2x20 6x40"},
    "PcpoRestarts": {'ray_pcpo_restarts_total{run="r",role="samplers",cause="died"}': "_x45 4x25"},
    "PcpoSpilling": {'ray_object_store_memory{SessionName="s",Location="SPILLED"}': "0x20 5000x40"},
}
WHEN = 55
"""The minute that is looked at."""


def firing(tmp_path, series):
    """The alerts that fire at the minute WHEN, by promtool, which says of each expectation that fails what it got."""
    tests = [
        {
            "expr": f'count by (alertname) (ALERTS{{alertname="{alert.name}",alertstate="firing"}})',
            "eval_time": f"{WHEN}m",
            "exp_samples": [],
        }
        for alert in ALERTS
    ]
    inputs = [{"series": key, "values": values} for key, values in series.items()]
    path = tmp_path / "test.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "rule_files": [str(RULES)],
                "evaluation_interval": "15s",
                "tests": [{"interval": "1m", "input_series": inputs, "promql_expr_test": tests}],
            }
        )
    )
    done = subprocess.run(["promtool", "test", "rules", path], capture_output=True, text=True, timeout=60)
    told = done.stdout + done.stderr
    found = set(re.findall(r'got:.*alertname="(\w+)"', told))
    assert (done.returncode == 0) == (not found), told
    return found


def test_no_alert_fires_while_all_is_well(tmp_path):
    assert firing(tmp_path, WELL) == set()


@pytest.mark.parametrize("alert", [alert.name for alert in ALERTS])
def test_an_alert_and_no_other_fires_where_its_condition_is_provoked(alert, tmp_path):
    assert firing(tmp_path, {**WELL, **PROVOKED[alert]}) == {alert}


# -- a run -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scraped:
    """A run that goes on, and the Prometheus that scrapes it."""

    job: subprocess.Popen
    log: Path
    address: str
    dashboard: str
    session: str
    rays: Path
    environment: dict[str, str]

    def api(self, path, **values):
        with urllib.request.urlopen(
            f"{self.address}/api/v1/{path}?{urllib.parse.urlencode(values, doseq=True)}", timeout=30
        ) as answer:
            found = json.load(answer)
        assert found["status"] == "success", found
        return found["data"]

    def query(self, expression):
        """What Prometheus makes of an expression now, as a panel would ask. Raises HTTPError where it cannot."""
        for name, value in {"$SessionName": self.session, "$run": "told", "$window": "1m", "$reward": "reward"}.items():
            expression = expression.replace(name, value)
        return self.api("query", query=expression)["result"]


class HealthyGrafana(BaseHTTPRequestHandler):
    """Says what Ray's dashboard asks Grafana for."""

    def do_GET(self):
        body = json.dumps({"database": "ok"}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def wait_for(what, why, job, log):
    deadline = time.monotonic() + LIMIT
    while not (found := what()):
        assert job.poll() is None, f"the run ended: {log.read_text()}"
        assert time.monotonic() < deadline, f"{why() if callable(why) else why}: not in {LIMIT:g} s; {log.read_text()}"
        time.sleep(1.0)
    return found


def children_of(job):
    """The processes that a job started and that are there still, each with its command."""
    for process in psutil.Process(job.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            yield process, process.cmdline()


def samplers_of(rays):
    """The samplers that write into a Ray's folder; warm ones are no children of the job."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError):
            named = "ray::SamplerActor" in " ".join(process.cmdline())
            if named and Path(f"/proc/{process.pid}/fd/1").readlink().is_relative_to(rays):
                yield process


def head_of(job):
    """The head's host:port. Over the dashboard, Ray needs an agent whose port another Ray on this machine may have."""
    given = "--gcs-address="
    return next(word for _, words in children_of(job) for word in words if word.startswith(given)).removeprefix(given)


@pytest.fixture(scope="module")
def scraped(small_sd, tmp_path_factory):
    """A run in which everything happens that a metric tells of, on a Ray of its own."""
    folder = tmp_path_factory.mktemp("told")
    run = small.run(
        small_sd,
        name="told",
        steps=100_000,
        sampling__steps=12,
        objective__kl=0.01,
        objective__correction=2.0,
        objective__old_predictions="recomputed",
        rollout__max_staleness=1,
        optimizer__average=0.9,
        rewards="[{kind: jpeg_compressibility}, {kind: 'tests.support.custom:Failing', options: {every: 3}}]",
        evaluation__rewards="[{kind: diversity}]",
        evaluation__train_count=1,
        evaluation__quality="{features: {kind: clip}}",
        evaluation__count=6,
        evaluation__every=40,
        workers__samplers="{workers: 1, min: 1, max: 2, cpus: 0.1}",
    )
    (folder / "told.yaml").write_text(files.dump(run))
    port, grafana, log = free_port(), HTTPServer(("127.0.0.1", 0), HealthyGrafana), folder / "told.log"
    threading.Thread(target=grafana.serve_forever, daemon=True).start()
    with contextlib.ExitStack() as ending:
        ending.callback(grafana.server_close)
        ending.callback(grafana.shutdown)
        rays = Path(tempfile.mkdtemp(prefix="r"))  # short: sockets lie in it
        ending.callback(shutil.rmtree, rays, ignore_errors=True)
        environment = {
            **ENVIRONMENT,
            "RAY_AUTH_MODE": "disabled",
            "RAY_TMPDIR": str(rays),
            "RAY_metrics_report_interval_ms": "2000",
            "RAY_PROMETHEUS_HOST": f"http://127.0.0.1:{port}",
            "RAY_GRAFANA_HOST": f"http://127.0.0.1:{grafana.server_port}",
            "RAY_GRAFANA_DATA_DASHBOARD_UID": "pcpo-training",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # for jobs
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }
        environment.pop("RAY_ADDRESS", None)
        words = command("train", folder / "told.yaml", "--runs", folder)
        with log.open("w") as file:
            job = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=ROOT)
        ending.callback(ended, job, log)
        targets = rays / "ray" / "prom_metrics_service_discovery.json"
        wait_for(targets.is_file, "Ray's service discovery", job, log)
        settings = {
            "global": {"scrape_interval": "2s", "evaluation_interval": "2s"},
            "rule_files": [str(RULES)],
            "scrape_configs": [
                {"job_name": "ray", "file_sd_configs": [{"files": [str(targets)], "refresh_interval": "2s"}]}
            ],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
        with (folder / "prometheus.log").open("w") as file:
            prometheus = subprocess.Popen(
                ["prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
                 f"--web.listen-address=127.0.0.1:{port}"],
                stdout=file, stderr=subprocess.STDOUT,
            )  # fmt: skip
        ending.callback(prometheus.wait, 60)
        ending.callback(prometheus.terminate)
        said = wait_for(lambda: re.search(r"Ray dashboard: (http\S+)", log.read_text()), "Ray's dashboard", job, log)
        session = (rays / "ray" / "session_latest").resolve().name
        yield Scraped(
            job=job,
            log=log,
            address=f"http://127.0.0.1:{port}",
            dashboard=said.group(1),
            session=session,
            rays=rays,
            environment=environment,
        )


def ended(job, log):
    """The run stops as a user stops it, and leaves no process."""
    children = psutil.Process(job.pid).children(recursive=True)
    job.send_signal(signal.SIGTERM)
    try:
        job.wait(timeout=120)
    finally:
        job.kill()
    _, left = psutil.wait_procs(children, timeout=60)
    assert not left, f"{left}; {log.read_text()}"


@pytest.fixture(scope="module")
def eventful(scraped):
    """The run, once three samplers were killed and replaced, its pool was asked to grow, and both have been seen."""
    job, log = scraped.job, scraped.log
    wait_for(lambda: scraped.query('ray_pcpo_updates_total{run="told"}'), "a first step", job, log)

    def replaced():
        found = scraped.query('sum(ray_pcpo_restarts_total{run="told",role="samplers"})')
        return int(found[0]["value"][1]) if found else 0

    for count in range(3):
        wait_for(lambda: [*samplers_of(scraped.rays)], "a sampler", job, log)[0].kill()
        wait_for(lambda n=count: replaced() > n, "a restart", job, log)
    words = command("scale", "told", "--samplers", 2, "--address", head_of(job))
    done = subprocess.run(words, env=scraped.environment, cwd=log.parent, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stdout + done.stderr
    wait_for(lambda: scraped.query('ray_pcpo_resizes_total{run="told"}'), "a resize", job, log)
    return scraped


def test_every_catalogued_metric_arrives_with_type_help_and_labels(eventful):
    def missing():
        there = set(eventful.api("label/__name__/values"))
        return {metric.scraped for metric in GOING} - there

    wait_for(lambda: not missing(), lambda: f"metrics {missing()}", eventful.job, eventful.log)
    told = eventful.api("metadata")
    for metric in GOING:
        # OpenMetrics names a counter without its _total
        entry = (told.get(metric.scraped) or told[metric.scraped.removesuffix("_total")])[0]
        assert (entry["type"], entry["help"]) == (metric.kind, metric.help), metric.name
        for series in eventful.query(metric.scraped):
            assert {"run", "SessionName", "WorkerId", *metric.labels} <= set(series["metric"])
            assert series["metric"]["run"] == "told" and series["metric"]["SessionName"] == eventful.session
    names = {name for name in eventful.api("label/__name__/values") if "pcpo" in name}
    assert names == {*(metric.scraped for metric in GOING), *(one.name for one in RECORDED)}, (
        "a metric that is in no catalogue"
    )


def test_a_gauge_that_changes_seldom_is_there_at_every_scrape(eventful):
    """Ray forgets gauges that are not set again: held-out scores change once in 40 steps, steps not at all."""
    deadline = time.monotonic() + LIMIT
    while True:
        counted = {
            name: {found["value"][1] for found in eventful.query(f'count_over_time({name}{{run="told"}}[40s])')}
            for name in ("ray_pcpo_updates_total", "ray_pcpo_evaluation_score", "ray_pcpo_steps")
        }
        if len(set().union(*counted.values())) == 1 and int(counted["ray_pcpo_steps"].pop()) >= 19:
            return
        assert time.monotonic() < deadline, counted
        time.sleep(1.0)


HERE = {
    "the run stands still",
    "a driver of the run has ended",
    "a run vanished",
    "a run failed",
    "a gradient was skipped",
    "a judge is asked",
    *([] if torch.cuda.is_available() else ["the cluster has GPUs"]),
}
"""The conditions, of those on the page of metrics, that do not hold in this run; all others do."""


def test_every_expression_of_a_dashboard_has_data_or_says_why_not(eventful):
    wait_for(lambda: eventful.query("ALERTS{alertstate='firing'}"), "an alert", eventful.job, eventful.log)
    queries = {
        f"{board.title}: {panel.title}: {query.legend}": query
        for board in (TRAINING, CLUSTER)
        for row in board.rows
        for panel in row.panels
        for query in panel.queries
    }
    expected = {name for name, query in queries.items() if HERE & set(query.conditions)}

    def empty():
        return {name for name, query in queries.items() if not eventful.query(query.expr)}

    wait_for(lambda: empty() <= expected, lambda: f"data for {empty() - expected}", eventful.job, eventful.log)
    assert empty() == expected
    for name, query in queries.items():
        for series in eventful.query(query.expr):
            assert not {"WorkerId", "NodeAddress", "instance"} & set(series["metric"]), name


def test_every_alerts_value_can_be_told_or_it_is_said_why_not(eventful):
    expected = {alert.name for alert in ALERTS if HERE & set(alert.conditions)}

    def empty():
        return {alert.name for alert in ALERTS if not eventful.query(alert.value)}

    wait_for(lambda: empty() == expected, lambda: f"values of {empty()}, to be {expected}", eventful.job, eventful.log)
    groups = eventful.api("rules")["groups"]
    rules = {rule["name"]: rule for group in groups for rule in group["rules"]}
    assert rules.keys() == {one.name for one in (*ALERTS, *RECORDED)}
    assert {rule["health"] for rule in rules.values()} == {"ok"}, rules


def test_killed_samplers_fire_an_alert_and_no_other_critical_one(eventful):
    def firing():
        return {
            alert["labels"]["alertname"]: alert
            for alert in eventful.api("alerts")["alerts"]
            if alert["state"] == "firing"
        }

    wait_for(lambda: "PcpoRestarts" in firing(), "the alert", eventful.job, eventful.log)
    found = firing()
    alert = found["PcpoRestarts"]
    assert alert["labels"]["run"] == "told" and alert["labels"]["role"] == "samplers"
    assert re.fullmatch(r"told: \d+ samplers were replaced in 15 minutes\.", alert["annotations"]["summary"])
    assert not [one for one in found.values() if one["labels"]["severity"] == "critical"], found


def test_one_phase_is_on_at_a_time_and_means_are_those_of_the_run(eventful):
    assert [float(found["value"][1]) for found in eventful.query('sum by (run) (ray_pcpo_phase{run="told"})')] == [1.0]
    mean = "sum(ray_pcpo_step_seconds_total) / sum(ray_pcpo_updates_total)"
    rows = [json.loads(line) for line in (eventful.log.parent / "told" / "metrics.jsonl").read_text().splitlines()]
    seconds = [row["seconds"] for row in rows if row["kind"] == "train"]
    assert min(seconds) <= float(eventful.query(mean)[0]["value"][1]) <= max(seconds)


def test_rays_dashboard_shows_training_in_its_metrics_tab(scraped):
    def asked(path):
        with urllib.request.urlopen(f"{scraped.dashboard}/api/{path}", timeout=30) as answer:
            return json.load(answer)

    wait_for(lambda: asked("prometheus_health")["result"], "Prometheus, by Ray's dashboard", scraped.job, scraped.log)
    health = asked("grafana_health")
    assert health["result"] and health["data"]["dashboardUids"]["data"] == TRAINING.uid
    assert health["data"]["dashboardDatasource"] == "Prometheus"
