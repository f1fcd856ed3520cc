"""deploy/METRICS.md: how to get at the metrics, what each is, what the alerts say, which panels may be empty."""

from collections.abc import Iterator

from pcpo_ray.metrics import catalogue
from pcpo_ray.metrics.dashboards.alerts import ALERTS, RECORDED
from pcpo_ray.metrics.dashboards.cluster import CLUSTER
from pcpo_ray.metrics.dashboards.query import RAYS_OWN
from pcpo_ray.metrics.dashboards.training import TRAINING

SECTIONS = {
    "Is it learning": catalogue.LEARNING,
    "Is it healthy": catalogue.HEALTH,
    "Where time goes": catalogue.TIME,
    "Versions of the weights": catalogue.VERSIONS,
    "The cluster": catalogue.CLUSTER,
}

HEAD = """<!-- Made by `python -m pcpo_ray.metrics.dashboards` from the catalogue, pcpo_ray/metrics/catalogue.py. -->
# Metrics

What a run tells Prometheus, the two Grafana dashboards and the alerts made of it. All three come from one catalogue;
a test holds this page, the dashboards and the rules to it, and another scrapes a run with a real Prometheus (`make
chaos`). [README.md](README.md) says how Prometheus and Grafana are set up where.

## Getting at them

**On Ray** they are at every node's metrics port, beside Ray's own. Ray's head writes which ports those are to
`prom_metrics_service_discovery.json`, in its session's folder and in the temporary folder (`/tmp/ray`):

```yaml
scrape_configs:
  - job_name: ray
    file_sd_configs:
      - files: [/tmp/ray/prom_metrics_service_discovery.json]
rule_files: [rules.yaml]
```

On Kubernetes a PodMonitor on the ports `metrics`, `as-metrics` and `dash-metrics` does the same. Ray reports every 10 s
(`RAY_metrics_report_interval_ms`), so that a shorter scrape interval shows nothing more; below 2000, Ray's own metrics
of nodes, which come every 2.5 s, are dropped in between.

**In one process**, `pcpo-ray train CONFIG --local --metrics-port 9400` serves the same names at
`http://127.0.0.1:9400/metrics`, on this machine only. Port 0 takes a free one and says which.

## Reading them

Names begin with `ray_pcpo_`: `ray_` is what Ray puts before every name, and a run in one process does the same, so that
one dashboard and one set of rules read both. Every metric has the label `run`, the run's name, beside those below. Ray
adds `SessionName`, `WorkerId` and others, so expressions aggregate: `max by (run)` of a gauge, `sum by (run)` of a
counter. All come from the driver, once a step, an event or a phase, and every 5 s what a status says. A mean is a
counter of seconds over a counter of events, such as `rate(ray_pcpo_step_seconds_total[5m]) /
rate(ray_pcpo_updates_total[5m])`. On Ray, gauges end with the driver (20 s), counters stay, and each first shows at
its first event; what changed in a run's last seconds may never be scraped: it is in the run's folder. A gauge by
`timestep` keeps its last value while a batch does not train that timestep.

**A run that is gone tells nothing**, so `PcpoRunVanished` compares what Prometheus remembers of the last hour: each
process that drives a run has a name (label `driver`), shows when it started, and counts its end before it ends. Where
the newest driver of a run neither is there nor counted its end, the alert fires, until the hour is over or the run is
resumed. The end reaches Prometheus in time: Ray keeps the counter of a driver that has ended; a Ray that ends with its
run waits for Prometheus at `RAY_PROMETHEUS_HOST`, where that is set, at most 40 s; and `--metrics-port` waits for the
next scrape, at most 20 s.
"""

GRAFANA = """
## Grafana

`grafana/dashboards/training.json` and `cluster.json` are imported as they are, or provisioned from that folder; both
ask for the data source, the Ray session, the run, and how far back rates look. The first row of Training answers in two
seconds; rows that one needs now and then are collapsed. Lines and colours of limits are the alert rules' own numbers.
Evaluations, checkpoints and replaced workers are marked on every chart.

Grafana's own types read them without a loss (its foundation SDK for 10.1, once, by hand, before rows were collapsed),
and every expression is evaluated by a real Prometheus in a test; but they have not been seen in Grafana: none was at
hand.

Ray's dashboard shows Grafana in its metrics tab. It embeds two dashboards, Core and Ray Data, which it knows by their
uid; as a run here does not use Ray Data, its place can be had. Set where Ray's head starts:

```
RAY_PROMETHEUS_HOST=http://prometheus:9090     # as the head reaches it
RAY_GRAFANA_HOST=http://grafana:3000           # as the head reaches it
RAY_GRAFANA_IFRAME_HOST=http://localhost:3000  # as your browser reaches it
RAY_PROMETHEUS_NAME=Prometheus                 # the data source's name in Grafana
RAY_GRAFANA_DATA_DASHBOARD_UID=pcpo-training   # the tab "Ray Data" then shows Training
```

The tab passes the session and the data source on, and both dashboards link to each other and to Ray's Core. Grafana
must not be given Ray's own `data_grafana_dashboard.json` then, as it has the same uid: `compose.yaml` gives it all of
Ray's, so it does not set the last line.
"""


def page() -> str:
    """The whole page."""
    return HEAD + "".join(_catalogue()) + "".join(_alerts()) + "".join(_recorded()) + "".join(_empty()) + GRAFANA


def _catalogue() -> Iterator[str]:
    for title, entries in SECTIONS.items():
        yield f"\n### {title}\n\n| metric | type, unit | labels | what it is |\n|---|---|---|---|\n"
        for metric in entries:
            kind = ", ".join(word for word in (metric.kind, metric.unit) if word)
            labels = ", ".join(f"`{label}`" for label in metric.labels)
            when = f" Only where {metric.when}." if metric.when else ""
            yield f"| `{metric.scraped}` | {kind} | {labels} | {_cell(metric.help + when)} |\n"
    yield (
        "\n`outcome` of a task: " + "; ".join(f"`{name}`, {text}" for name, text in catalogue.OUTCOMES.items()) + ".\n"
    )
    yield "Of Ray's own, the dashboards and rules use " + ", ".join(f"`{name}`" for name in RAYS_OWN) + ".\n"


def _alerts() -> Iterator[str]:
    yield "\n## Alerts\n\n`prometheus/rules.yaml`; each has a `severity`, a summary and what to do.\n\n"
    yield "| alert | severity | fires when | for | what to do |\n|---|---|---|---|---|\n"
    for alert in ALERTS:
        yield f"| `{alert.name}` | {alert.severity} | `{_cell(alert.expr)}` | {alert.lasting} | {_cell(alert.todo)} |\n"


def _recorded() -> Iterator[str]:
    yield "\n## Recorded series\n\n| series | what it is |\n|---|---|\n"
    for one in RECORDED:
        yield f"| `{one.name}` | {_cell(one.text)} |\n"


def _empty() -> Iterator[str]:
    yield "\n## Panels and alerts without data\n\nThese are empty unless something is so; all others have data.\n"
    yield "\n| dashboard | panel | empty unless |\n|---|---|---|\n"
    for dashboard in (TRAINING, CLUSTER):
        for row in dashboard.rows:
            for panel in row.panels:
                for query in panel.queries:
                    if query.conditions:
                        of = panel.title if len(panel.queries) == 1 else f"{panel.title}, {query.legend}"
                        yield f"| {dashboard.title} | {_cell(of)} | {_cell('; '.join(query.conditions))} |\n"
    for alert in ALERTS:
        if alert.conditions:
            yield f"| rules | {alert.name} | {_cell('; '.join(alert.conditions))} |\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
