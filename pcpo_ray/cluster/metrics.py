"""The catalogue on ray.util.metrics: it arrives where Ray's own metrics do, at every node's metrics port."""

from collections.abc import Sequence

from ray.util.metrics import Counter, Gauge

from pcpo_ray.meter import Change
from pcpo_ray.metrics import Metric


class RayExporter:
    """The driver's metrics. They are made when they first change: Ray must be there by then."""

    def __init__(self) -> None:
        self.gauges: dict[Metric, Gauge] = {}
        self.counters: dict[Metric, Counter] = {}

    def apply(self, run: str, changes: Sequence[Change]) -> None:
        for change in changes:
            metric, tags = change.metric, {"run": run, **change.labels}
            keys = ("run", *metric.labels)
            if metric.kind == "gauge":
                if metric not in self.gauges:
                    self.gauges[metric] = Gauge(metric.name, metric.help, keys)
                self.gauges[metric].set(change.value, tags)
            elif change.value > 0:  # Ray refuses to add nothing
                if metric not in self.counters:
                    self.counters[metric] = Counter(metric.name, metric.help, keys)
                self.counters[metric].inc(change.value, tags)

    def close(self) -> None:
        """They end with the driver."""
