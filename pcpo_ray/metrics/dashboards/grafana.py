"""From panels to a dashboard as Grafana stores it (schema version 39, Grafana 10 and later)."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any, Literal

from pcpo_ray.metrics import catalogue
from pcpo_ray.metrics.dashboards.alerts import BY_NAME
from pcpo_ray.metrics.dashboards.query import Query, series

COLUMNS = 24
"""The columns of Grafana's grid."""

SOURCE = {"type": "prometheus", "uid": "${datasource}"}

Kind = Literal["timeseries", "stat", "heatmap", "state-timeline"]

LINE = {"drawStyle": "line", "lineWidth": 2, "fillOpacity": 0, "showPoints": "never", "spanNulls": True}


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A chart. `unit` is Grafana's name of one, `width` of 24; `floor` and `ceiling` the axis' ends (None: free).

    `alert` names the rule whose number is drawn as a line, or colours a stat. `steps` are colours of a stat that has
    none: each from a value on. `names` shows a stat's labels in place of its numbers, `nothing` what it says without
    data. `repeat` names the variable for each value of which there is a panel.
    """

    title: str
    text: str
    queries: tuple[Query, ...]
    unit: str = "short"
    kind: Kind = "timeseries"
    width: int = 8
    height: int = 8
    floor: float | None = 0.0
    ceiling: float | None = None
    stacked: bool = False
    alert: str = ""
    steps: tuple[tuple[float, str], ...] = ()
    names: bool = False
    nothing: str = ""
    repeat: str = ""


def chart(title: str, text: str, *queries: Query, **looks: Any) -> Panel:
    """A panel, with what it shows last."""
    return Panel(title=title, text=text, queries=queries, **looks)


@dataclass(frozen=True)
class Row:
    """Panels under one heading; a `collapsed` row opens at a click."""

    title: str
    panels: tuple[Panel, ...]
    collapsed: bool = False


@dataclass(frozen=True, kw_only=True)
class Dashboard:
    """A page of rows; `uid` is its address in Grafana."""

    uid: str
    title: str
    text: str
    rows: tuple[Row, ...]
    rewards: bool = False
    """True if panels are repeated for each evaluated reward."""


def dashboard(made: Dashboard) -> str:
    """The JSON that Grafana imports or is provisioned with."""
    page = {
        "uid": made.uid,
        "title": made.title,
        "description": made.text,
        "tags": ["pcpo_ray"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": [*_annotations()]},
        "links": [
            _link("dashboards", "Training and Cluster", tags=["pcpo_ray"]),
            _link("link", "Ray's own", url="/d/rayDefaultDashboard"),
        ],
        "templating": {"list": [*_variables(), *(_rewards() if made.rewards else ())]},
        "panels": [*_panels(made.rows)],
    }
    return json.dumps(page, indent=1, ensure_ascii=False) + "\n"


def _link(kind: str, title: str, *, tags: Sequence[str] = (), url: str = "") -> Mapping[str, Any]:
    return {"type": kind, "title": title, "tags": list(tags), "url": url, "asDropdown": False, "includeVars": True,
            "keepTime": True, "targetBlank": False, "icon": "external link", "tooltip": ""}  # fmt: skip


def _variables() -> Iterator[Mapping[str, Any]]:
    # datasource and SessionName are called as in Ray's dashboards: its metrics tab sets both
    yield {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source", "refresh": 1,
           "hide": 0, "includeAll": False, "multi": False, "regex": "", "options": [], "current": {}}  # fmt: skip
    step = catalogue.BY_NAME["step"].scraped
    yield _asked("SessionName", "Ray session", f"label_values({step}, SessionName)", everything=True)
    yield _asked("run", "Run", f'label_values({step}{{SessionName=~"$SessionName"}}, run)', everything=False)
    windows = ["1m", "5m", "15m", "1h"]
    options = [{"text": window, "value": window, "selected": window == "5m"} for window in windows]
    yield {"name": "window", "type": "interval", "label": "Rates over", "query": ",".join(windows), "auto": False,
           "auto_count": 30, "auto_min": "10s", "hide": 0, "refresh": 2, "options": options,
           "current": options[1]}  # fmt: skip


SHOWN_REWARDS = (
    'max by (reward) (ray_pcpo_evaluation_score{run=~"$run",reward!="reward"}) or '
    '(max by (reward) (ray_pcpo_evaluation_score{run=~"$run",reward="reward"}) and on () '
    '(count(max by (reward) (ray_pcpo_reward{run=~"$run",reward!="reward"})) > 1))'
)
"""The evaluated rewards, with the weighted sum where several are trained on: of one it is that one again."""


def _rewards() -> Iterator[Mapping[str, Any]]:
    asked = _asked("reward", "Reward", f"query_result({SHOWN_REWARDS})", everything=True)
    yield {**asked, "regex": '/reward="([^"]+)"/', "hide": 2, "multi": True}


MARKS = {
    "Evaluations": ("evaluations", "blue"),
    "Checkpoints": ("checkpoints", "green"),
    "Workers replaced": ("restarts", "red"),
}
"""The marks on every chart: the counter that grows then, and the mark's colour."""


def _annotations() -> Iterator[Mapping[str, Any]]:
    for name, (counted, colour) in MARKS.items():
        yield {"name": name, "datasource": SOURCE, "enable": True, "hide": False, "iconColor": colour,
               "expr": f"sum by (run) (changes({series(counted)}[1m])) > 0", "step": "60s", "titleFormat": name,
               "textFormat": "{{run}}", "tagKeys": "", "useValueForTime": False}  # fmt: skip


def _asked(name: str, label: str, query: str, *, everything: bool) -> Mapping[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "definition": query,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 2,
        "hide": 0,
        "regex": "",
        "multi": False,
        "includeAll": everything,
        **({"allValue": ".*", "current": {"selected": True, "text": "All", "value": "$__all"}} if everything else {}),
        "options": [],
    }


def _panels(rows: tuple[Row, ...]) -> Iterator[Mapping[str, Any]]:
    number, y = 0, 0
    for row in rows:
        number += 1
        heading = {"id": number, "type": "row", "title": row.title, "collapsed": row.collapsed,
                   "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1}}  # fmt: skip
        x, below, tallest, panels = 0, y + 1, 0, []
        for panel in row.panels:
            if x + panel.width > COLUMNS:
                x, below, tallest = 0, below + tallest, 0
            number += 1
            panels.append(_panel(panel, number, {"x": x, "y": below, "w": panel.width, "h": panel.height}))
            x, tallest = x + panel.width, max(tallest, panel.height)
        # a collapsed row keeps its panels inside, as Grafana does, and takes no more room than its heading
        yield {**heading, "panels": panels if row.collapsed else []}
        if not row.collapsed:
            yield from panels
        y = y + 1 if row.collapsed else below + tallest


def _panel(panel: Panel, number: int, place: Mapping[str, int]) -> Mapping[str, Any]:
    ends = {"min": panel.floor, "max": panel.ceiling}
    defaults = {"unit": panel.unit, **{end: value for end, value in ends.items() if value is not None}}
    conditions = list(dict.fromkeys(text for query in panel.queries for text in query.conditions))
    text = panel.text + (f" {_fires(panel.alert)}" if panel.alert else "")
    text += f" No data unless {'; '.join(conditions)}." if conditions else ""
    repeated = {"repeat": panel.repeat, "repeatDirection": "h", "maxPerRow": 3} if panel.repeat else {}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": text,
        "gridPos": place,
        **repeated,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": {**defaults, **_fields(panel)}, "overrides": []},
        "options": _options(panel),
        "targets": [
            {"refId": letter, "expr": query.expr, "legendFormat": query.legend, "datasource": SOURCE,
             "editorMode": "code", "range": True, "instant": False, "format": "time_series"}
            for letter, query in zip(ascii_uppercase, panel.queries, strict=False)
        ],
    }  # fmt: skip


def _fires(name: str) -> str:
    """Say where an alert fires, in a panel's description."""
    alert = BY_NAME[name]
    return f"Alert {name} fires {'below' if alert.below else 'above'} {alert.limit:g}."


def _thresholds(panel: Panel) -> Mapping[str, Any]:
    """Return the colours of a panel's values: red where its alert fires, or as its `steps` say."""
    if panel.alert:
        alert = BY_NAME[panel.alert]
        colours = ("red", "green") if alert.below else ("green", "red")
        steps = [(None, colours[0]), (alert.limit, colours[1])]
    else:
        steps = [(None if place == 0 else value, colour) for place, (value, colour) in enumerate(panel.steps)]
    found = [{"color": colour, "value": value} for value, colour in steps]
    return {"thresholds": {"mode": "absolute", "steps": found}} if found else {}


def _fields(panel: Panel) -> Mapping[str, Any]:
    thresholds = _thresholds(panel)
    match panel.kind:
        case "timeseries":
            stacking = {"mode": "normal", "group": "A"} if panel.stacked else {"mode": "none", "group": "A"}
            fill = 60 if panel.stacked else 0
            line = {"thresholdsStyle": {"mode": "dashed"}} if thresholds else {}
            custom = {**LINE, "fillOpacity": fill, "stacking": stacking, **line}
            return {"color": {"mode": "palette-classic"}, "custom": custom, **thresholds}
        case "stat":
            colour = {"mode": "thresholds"} if thresholds else {"mode": "fixed", "fixedColor": "text"}
            return {"color": colour, **thresholds, **({"noValue": panel.nothing} if panel.nothing else {})}
        case "state-timeline":
            return {"color": {"mode": "continuous-BlPu"}, "custom": {"fillOpacity": 80, "lineWidth": 0}}
        case "heatmap":
            return {"custom": {"scaleDistribution": {"type": "linear"}}}


def _options(panel: Panel) -> Mapping[str, Any]:
    match panel.kind:
        case "timeseries":
            return {
                "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
                "tooltip": {"mode": "multi", "sort": "desc"},
            }
        case "stat":
            return {
                "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
                "colorMode": "value", "graphMode": "none" if panel.names else "area", "justifyMode": "auto",
                "orientation": "auto", "textMode": "name" if panel.names else "auto",
            }  # fmt: skip
        case "state-timeline":
            return {
                "legend": {"displayMode": "list", "placement": "bottom", "showLegend": False},
                "mergeValues": True, "rowHeight": 0.8, "showValue": "never", "tooltip": {"mode": "single"},
            }  # fmt: skip
        case "heatmap":
            # the series are the rows of the map already, named by a number each
            return {
                "calculate": False,
                "cellGap": 1,
                "cellValues": {"unit": panel.unit},
                "color": {"mode": "scheme", "scheme": "Viridis", "steps": 64, "reverse": False, "fill": "dark-blue",
                          "exponent": 0.5, "scale": "exponential"},
                "filterValues": {"le": -1},
                "legend": {"show": True},
                "rowsFrame": {"layout": "auto", "value": panel.title},
                "tooltip": {"mode": "single", "showColorScale": True, "yHistogram": False},
                "yAxis": {"axisPlacement": "left", "reverse": False, "axisLabel": "timestep"},
            }  # fmt: skip
