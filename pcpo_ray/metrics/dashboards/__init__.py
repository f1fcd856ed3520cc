"""Files made of the catalogue for those who watch a run: two Grafana dashboards, alert rules, and their page.

`python -m pcpo_ray.metrics.dashboards` writes them into deploy/; a test sees that what is committed is what is made.
"""

from collections.abc import Mapping


def files() -> Mapping[str, str]:
    """The text of every file, by its path below the repository's root."""
    from pcpo_ray.metrics.dashboards import alerts, grafana, page
    from pcpo_ray.metrics.dashboards.cluster import CLUSTER
    from pcpo_ray.metrics.dashboards.training import TRAINING

    return {
        "deploy/grafana/dashboards/training.json": grafana.dashboard(TRAINING),
        "deploy/grafana/dashboards/cluster.json": grafana.dashboard(CLUSTER),
        "deploy/prometheus/rules.yaml": alerts.rules(),
        "deploy/METRICS.md": page.page(),
    }
