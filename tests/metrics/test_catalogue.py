"""The catalogue holds to Prometheus' conventions, and a short run tells every metric in it that it can."""

import re

import pytest

from pcpo_ray.commands import session
from pcpo_ray.metrics import catalogue
from pcpo_ray.metrics.catalogue import CATALOGUE
from pcpo_ray.metrics.prometheus import Endpoint
from pcpo_ray.metrics.reporter import ExportingReporter
from pcpo_ray.runs.folder import LocalFolder
from pcpo_ray.training.loop import Loop
from pcpo_ray.training.recorder import Recorder
from tests.support import small
from tests.support.judged import MODEL, Vllm
from tests.support.scraping import scraped

UNIT_IN_NAME = {"seconds": "_seconds", "bytes": "_bytes"}


def test_names_are_unique_lower_case_and_end_in_their_unit():
    names = [metric.scraped for metric in CATALOGUE]
    assert len(set(names)) == len(names)
    for metric in CATALOGUE:
        assert re.fullmatch(r"pcpo_[a-z_]+", metric.name) and not metric.name.endswith("_total")
        assert metric.scraped.startswith("ray_pcpo_") and metric.scraped.endswith("_total") == (
            metric.kind == "counter"
        )
        for unit, suffix in UNIT_IN_NAME.items():
            assert (metric.unit == unit) == metric.name.endswith(suffix), metric.name


def test_every_metric_explains_itself_and_its_labels_are_its_own():
    for metric in CATALOGUE:
        assert metric.help.endswith(".") and metric.help[0] in metric.help.upper(), metric.name
        assert metric.help.isascii(), f"Ray takes no other letters: {metric.name}"
        assert not {"run", "instance", "job", "le", "SessionName", "WorkerId"} & set(metric.labels)


@pytest.fixture(scope="module")
def judged():
    """A judge's server."""
    server = Vllm()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def run_in_one_process(small_sd, tmp_path_factory, judged):
    """A run that has a bit of everything that one process can have, and what its port served when it was done."""
    run = small.run(
        small_sd,
        name="told",
        objective__kl=0.01,
        objective__correction=2.0,
        objective__old_predictions="recomputed",
        rollout__max_staleness=1,
        optimizer__average=0.9,
        rewards="[{kind: jpeg_compressibility}, {kind: 'tests.support.custom:Failing', options: {every: 3}}, "
        f"{{kind: judge, url: '{judged.url}', model: {MODEL}}}]",
        evaluation__rewards="[{kind: diversity}]",
        evaluation__count=6,
        evaluation__train_count=1,
        evaluation__quality="{features: {kind: clip}}",
    )
    recorder = Recorder.create(LocalFolder(local=tmp_path_factory.mktemp("run") / "told"), run)
    endpoint = Endpoint(0)
    recorder.meter = ExportingReporter(run.name, endpoint)
    stages = session.stages(run, local=True, say=lambda line: None)
    prompts, held_out = session.sources(run)
    recorder.event("started")
    Loop(run, stages, recorder, prompts=prompts, held_out=held_out).train()
    found = scraped(endpoint.port)
    recorder.close()
    return recorder, found


ONLY_ON_RAY = {"pcpo_restarts", "pcpo_resizes"}
"""In one process no worker is replaced and no pool resized; tests/chaos/test_prometheus.py sees both."""


def test_every_metric_arrives_in_a_short_run_but_those_that_need_a_pool(run_in_one_process):
    _, found = run_in_one_process
    wanted = {metric.scraped for metric in CATALOGUE if metric.name not in ONLY_ON_RAY}
    assert wanted - {name for name, _, _ in found} == set()
    assert {name for name, _, _ in found} - wanted == set()


def test_every_sample_has_its_metrics_labels_and_the_runs_name(run_in_one_process):
    _, found = run_in_one_process
    labels = {metric.scraped: {"run", *metric.labels} for metric in CATALOGUE}
    for name, has, _ in found:
        assert set(has) == labels[name] and has["run"] == "told", name


def test_what_is_scraped_is_what_was_recorded(run_in_one_process, judged):
    recorder, found = run_in_one_process
    values = {(name, *sorted(has.items())): value for name, has, value in found}
    rows = recorder.metrics()
    steps = [row for row in rows if row["kind"] == "train"]
    last = steps[-1]

    def value(name, **labels):
        return values[(f"ray_pcpo_{name}", *sorted({"run": "told", **labels}.items()))]

    assert (value("step"), value("steps"), value("updates_total")) == (2, 2, 2)
    assert value("loss") == last["loss"] and value("kl") == last["kl"]
    assert value("step_seconds_total") == pytest.approx(sum(row["seconds"] for row in steps))
    for n, timestep in enumerate(last["per_timestep"]["timestep"]):
        expected = last["per_timestep"]["gradient_share"][n]
        assert value("timestep_gradient_share", timestep=f"{timestep:g}") == expected
    evaluation = [row for row in rows if row["kind"] == "evaluation"][-1]
    assert value("evaluation_score", reward="diversity") == evaluation["rewards"]["diversity"]["mean"]
    assert value("first_log_ratio") == 0.0
    assert (
        value("tasks_total", role="samplers", outcome="done", reason="none") == 2 * 3 + 2 * 4
    )  # groups, and tasks of held-out and of training prompts
    missing = value("tasks_total", role="scorers", outcome="missing", reason="Failing")
    assert missing >= 2
    done = value("tasks_total", role="scorers", outcome="done", reason="none")
    assert missing + done == 2 * 3 + 2 * 4
    assert value("publishes_total", kind="weights") == 3 and value("publishes_total", kind="average") == 2
    assert value("checkpoints_total") == 2
    for kind, each in (("prompt", 100), ("completion", 7)):
        assert value("judge_tokens_total", reward="judge", kind=kind) == each * len(judged.asked)
    phases = [phase for name, phase in ((n, dict(k).get("phase")) for n, *k in values) if name == "ray_pcpo_phase"]
    assert sum(value("phase", phase=phase) for phase in phases) == 1


def test_busy_and_idle_seconds_are_all_that_workers_had(run_in_one_process):
    """One worker a role: what it worked and what it waited is what the phases took, to the driver's own seconds."""
    _, found = run_in_one_process
    totals = {}
    for name, has, value in found:
        if name in ("ray_pcpo_busy_seconds_total", "ray_pcpo_idle_seconds_total"):
            totals[has["role"]] = totals.get(has["role"], 0.0) + value
    phases = sum(
        value for name, has, value in found if name == "ray_pcpo_phase_seconds_total" and has["phase"] != "checkpoint"
    )
    assert totals.keys() == {"samplers", "scorers", "learner"}
    for role, seconds in totals.items():
        assert seconds == pytest.approx(phases, rel=0.02), role


def test_outcomes_of_tasks_are_those_that_are_explained(run_in_one_process):
    _, found = run_in_one_process
    seen = {has["outcome"] for name, has, _ in found if name == "ray_pcpo_tasks_total"}
    assert seen <= set(catalogue.OUTCOMES)
