"""Dashboards, rules and page are what the catalogue makes of them, and are laid out as Grafana wants them."""

import json
import re
from itertools import combinations

import pytest
import yaml

from pcpo_ray.metrics import dashboards
from pcpo_ray.metrics.catalogue import CATALOGUE
from pcpo_ray.metrics.dashboards.alerts import ALERTS, RECORDED
from pcpo_ray.metrics.dashboards.alerts import BY_NAME as ALERT
from pcpo_ray.metrics.dashboards.cluster import CLUSTER
from pcpo_ray.metrics.dashboards.query import PROMETHEUS_OWN, RAYS_OWN, conditions, names
from pcpo_ray.metrics.dashboards.training import TRAINING
from tests.support import ROOT

FILES = dashboards.files()
BOARDS = {name: json.loads(text) for name, text in FILES.items() if name.endswith(".json")}
PANELS = [
    (name, panel)
    for name, board in BOARDS.items()
    for top in board["panels"]
    for panel in (top, *top.get("panels", []))
]
CHARTS = [(name, panel) for name, panel in PANELS if panel["type"] != "row"]
EXPRESSIONS = [
    *(target["expr"] for _, panel in CHARTS for target in panel["targets"]),
    *(mark["expr"] for board in BOARDS.values() for mark in board["annotations"]["list"]),
    *(one.expr for one in (*ALERTS, *RECORDED)),
]

# ids of Grafana's units (packages/grafana-data, valueFormats)
UNITS = {"short", "percent", "percentunit", "s", "bytes", "Bps", "dateTimeFromNow"}


@pytest.mark.parametrize("name", FILES)
def test_what_is_committed_is_what_is_made(name):
    path = ROOT / name
    assert path.is_file(), f"python -m pcpo_ray.metrics.dashboards makes {name}"
    assert path.read_text(encoding="utf-8") == FILES[name], f"{name} is old: run python -m pcpo_ray.metrics.dashboards"


def test_every_metric_asked_for_is_catalogued_or_rays_or_prometheus_own():
    known = {metric.scraped for metric in CATALOGUE} | set(RAYS_OWN) | set(PROMETHEUS_OWN)
    for expression in EXPRESSIONS:
        assert names(expression) and set(names(expression)) <= known, expression
    words = {word for expression in EXPRESSIONS for word in re.findall(r"\b\w*pcpo\w*\b", expression)}
    assert words <= known, "a name without ray_ or _total"


def test_every_metric_of_the_catalogue_is_on_a_dashboard():
    shown = {name for expression in EXPRESSIONS for name in names(expression)}
    assert {metric.scraped for metric in CATALOGUE} - shown == set()


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_name_in_an_expression_is_aggregated_over_workers(expression):
    for name in names(expression):
        for found in re.finditer(rf"\b{name}\b", expression):
            before = expression[: found.start()]
            assert re.search(
                r"(max|sum|avg) by \([\w, ]+\) \((rate\(|increase\(|changes\(|max_over_time\()?$", before
            ), before


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_no_expression_keeps_the_label_of_a_worker_or_reads_a_histogram(expression):
    kept = {label for found in re.findall(r"by \(([^)]*)\)", expression) for label in found.split(", ")}
    assert kept and not kept & {"WorkerId", "NodeAddress", "instance", "Component"}
    assert "_bucket" not in expression and "_sum" not in expression


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_panels_have_ids_of_their_own_and_places_that_do_not_overlap(board):
    opened = [panel for top in board["panels"] for panel in (top, *top.get("panels", []))]
    ids = [panel["id"] for panel in opened]
    assert len(set(ids)) == len(ids) and min(ids) > 0
    for panel in opened:
        place = panel["gridPos"]
        assert place["w"] > 0 and place["h"] > 0 and place["x"] >= 0 and place["x"] + place["w"] <= 24
    inside = [[panel["gridPos"] for panel in top["panels"]] for top in board["panels"] if top.get("panels")]
    alone = [[panel["gridPos"] for panel in board["panels"]], *inside]  # what is seen together
    for one, other in (pair for places in alone for pair in combinations(places, 2)):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above, (one, other)


@pytest.mark.parametrize("panel", [panel for _, panel in CHARTS], ids=lambda panel: panel["title"])
def test_a_panel_says_what_it_shows_in_which_unit_from_which_source(panel):
    assert panel["title"] and panel["description"]
    assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
    assert [target["refId"] for target in panel["targets"]] == list("ABCDEFGH")[: len(panel["targets"])]
    for thing in (panel, *panel["targets"]):
        assert thing["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert all(target["legendFormat"] for target in panel["targets"])


def test_the_clip_fraction_per_timestep_is_a_heat_map_by_timestep():
    maps = [panel for _, panel in CHARTS if panel["type"] == "heatmap"]
    shown = {name for panel in maps for target in panel["targets"] for name in names(target["expr"])}
    assert "ray_pcpo_timestep_clip_fraction" in shown
    for panel in maps:
        assert panel["options"]["calculate"] is False
        assert [target["legendFormat"] for target in panel["targets"]] == ["{{timestep}}"]


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_a_dashboard_asks_for_what_its_expressions_use(board):
    asked = {variable["name"]: variable for variable in board["templating"]["list"]}
    used = {word for panel in board["panels"] for word in re.findall(r"\$\{?(\w+)", json.dumps(panel))}
    used |= set(re.findall(r"\$\{?(\w+)", json.dumps(board["annotations"])))
    assert used <= asked.keys() | {"labels"}
    assert asked["datasource"]["type"] == "datasource" and asked["datasource"]["query"] == "prometheus"
    assert asked["SessionName"]["allValue"] == ".*"  # a run in one process has none


def test_dashboards_have_addresses_of_their_own():
    assert {board["uid"] for board in BOARDS.values()} == {"pcpo-training", "pcpo-cluster"}
    assert {TRAINING.title, CLUSTER.title} == {"Training", "Cluster"}


def test_every_alert_has_a_severity_a_summary_and_what_to_do():
    rules = yaml.safe_load(FILES["deploy/prometheus/rules.yaml"])["groups"][0]["rules"]
    assert [rule["record"] for rule in rules if "record" in rule] == [one.name for one in RECORDED]
    rules = [rule for rule in rules if "record" not in rule]
    assert [rule["alert"] for rule in rules] == [alert.name for alert in ALERTS]
    for rule in rules:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert len(rule["annotations"]["summary"]) > 20 and len(rule["annotations"]["description"]) > 60
        assert re.search(r"\$labels\.(run|SessionName)", rule["annotations"]["summary"])


def test_the_panels_that_name_an_alert_name_one_that_there_is():
    named = {word for _, panel in CHARTS for word in re.findall(r"\bPcpo\w+", panel["description"])}
    assert named and named <= {alert.name for alert in ALERTS}


def test_what_may_have_no_data_is_on_the_page_with_its_reason():
    page = FILES["deploy/METRICS.md"]
    for board in (TRAINING, CLUSTER):
        for row in board.rows:
            for panel in row.panels:
                for query in panel.queries:
                    assert all(reason in page for reason in query.conditions)
                    assert set(conditions(query.expr)) <= set(query.conditions)
    for metric in CATALOGUE:
        assert f"`{metric.scraped}`" in page and metric.when in page


def titled(title):
    (found,) = [panel for _, panel in CHARTS if panel["title"] == title]
    return found


def test_the_first_row_fits_one_screen_and_alerts_are_0_or_red():
    training = BOARDS["deploy/grafana/dashboards/training.json"]["panels"]
    second = next(place for place, panel in enumerate(training) if place and panel["type"] == "row")
    first = training[1:second]
    assert {panel["type"] for panel in first} == {"stat"} and training[second]["gridPos"]["y"] <= 9
    titles = [panel["title"] for panel in first]
    assert titles[:3] == ["State", "Change of the reward", "Time left"]
    assert titles[3:6] == ["Alerts that fire", "Slowest role", "Workers replaced in 1 h"]
    alerts = titled("Alerts that fire")
    assert alerts["targets"][0]["expr"].endswith("or vector(0)")
    assert alerts["fieldConfig"]["defaults"]["thresholds"]["steps"] == [
        {"color": "green", "value": None}, {"color": "red", "value": 1}
    ]  # fmt: skip
    assert titled("State")["fieldConfig"]["defaults"]["noValue"] == "gone"


def test_a_limit_on_a_panel_is_its_alerts_own_number():
    drawn = 0
    for board in (TRAINING, CLUSTER):
        for panel in (panel for row in board.rows for panel in row.panels if panel.alert):
            alert, drawn = ALERT[panel.alert], drawn + 1
            made = titled(panel.title) if panel.title != "Clip fraction" else CHARTS[0][1]
            if made["title"] == panel.title:
                steps = made["fieldConfig"]["defaults"]["thresholds"]["steps"]
                assert steps[1]["value"] == alert.limit and f"{panel.alert} fires" in made["description"]
                assert (steps[0]["color"] == "red") == alert.below
    assert drawn >= 8


def test_rows_for_now_and_then_are_collapsed_with_their_panels_inside():
    rows = {panel["title"]: panel for _, panel in PANELS if panel["type"] == "row"}
    shut = {title for title, row in rows.items() if row["collapsed"]}
    assert shut == {"By timestep", "Is it collapsing", "Versions", "Memory and disk"}
    assert all(bool(row["panels"]) == row["collapsed"] for row in rows.values())


def test_a_panel_is_repeated_for_each_evaluated_reward():
    board = BOARDS["deploy/grafana/dashboards/training.json"]
    (panel,) = [panel for _, panel in CHARTS if "repeat" in panel]
    assert panel["repeat"] == "reward" and '$reward"' in panel["targets"][0]["expr"]
    variable = next(one for one in board["templating"]["list"] if one["name"] == "reward")
    assert re.findall(variable["regex"].strip("/"), '{reward="clip_score"} 0.5 1') == ["clip_score"]


def test_evaluations_checkpoints_and_faults_are_marked_on_every_chart():
    for board in BOARDS.values():
        marks = {mark["name"]: names(mark["expr"]) for mark in board["annotations"]["list"]}
        assert marks == {
            "Evaluations": ["ray_pcpo_evaluations_total"],
            "Checkpoints": ["ray_pcpo_checkpoints_total"],
            "Workers replaced": ["ray_pcpo_restarts_total"],
        }
