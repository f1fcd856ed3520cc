"""PromQL of catalogued metrics. Every expression aggregates over the labels that Ray adds, WorkerId first of all."""

import re
from dataclasses import dataclass

from pcpo_ray.metrics.catalogue import BY_NAME, CATALOGUE, Metric

RAYS_OWN = {
    "ray_node_cpu_utilization": "",
    "ray_node_gpus_utilization": "the cluster has GPUs",
    "ray_node_mem_used": "",
    "ray_node_mem_total": "",
    "ray_object_store_memory": "",
}
"""The metrics of Ray itself that are used, and what must be so for each to arrive (empty: it always does on Ray)."""

PROMETHEUS_OWN = {"ALERTS": "an alert is pending or firing"}
"""The series that Prometheus itself makes."""

CHOSEN = 'SessionName=~"$SessionName",run=~"$run"'
"""The labels that a dashboard's variables choose; a run in one process has no SessionName, which All matches too."""

WINDOW = "$window"
"""The window of a dashboard's rates: long enough for some steps."""

NAME = re.compile(r"\b(?:ray_\w+|ALERTS)\b")


@dataclass(frozen=True)
class Query:
    """One expression of a panel; `when` says what else must be so for it to have data."""

    expr: str
    legend: str
    when: str = ""

    @property
    def conditions(self) -> list[str]:
        """The conditions under which the query has data, its metrics' own included."""
        return list(dict.fromkeys(text for text in (*conditions(self.expr), self.when) if text))


def names(expr: str) -> list[str]:
    """The metrics that an expression reads, as scraped."""
    return list(dict.fromkeys(NAME.findall(expr)))


def conditions(expr: str) -> list[str]:
    """List the conditions under which an expression's metrics arrive; none where it is 0 without them."""
    if expr.endswith("or vector(0)"):
        return []
    known = {metric.scraped: metric.when for metric in CATALOGUE} | RAYS_OWN | PROMETHEUS_OWN
    return [known[name] for name in names(expr) if known[name]]


def series(name: str, chosen: str = CHOSEN, **labels: str) -> str:
    """A catalogued metric's series."""
    wanted = ",".join([*(f'{label}="{value}"' for label, value in labels.items()), *([chosen] if chosen else [])])
    return f"{_of(name).scraped}{{{wanted}}}" if wanted else _of(name).scraped


def gauge(name: str, *by: str, **labels: str) -> str:
    """A gauge's value, for each value of the labels `by`."""
    return f"max by ({', '.join(('run', *by))}) ({series(name, **labels)})"


def count(name: str, *by: str, **labels: str) -> str:
    """Query the present total of a counter."""
    return f"sum by ({', '.join(('run', *by))}) ({series(name, **labels)})"


def rate(name: str, *by: str, **labels: str) -> str:
    """By how much a counter grows in a second."""
    return f"sum by ({', '.join(('run', *by))}) (rate({series(name, **labels)}[{WINDOW}]))"


def _of(name: str) -> Metric:
    return BY_NAME[name]
