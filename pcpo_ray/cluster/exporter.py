"""The catalogue on ray.util.metrics: it arrives where Ray's own metrics do, at every node's metrics port."""

import math
import os
import threading
import time
from collections.abc import Sequence

from ray.util.metrics import Counter, Gauge

from pcpo_ray.metrics.catalogue import BY_NAME, Metric
from pcpo_ray.metrics.changes import Change
from pcpo_ray.process.ray_address import OWN, ray_address

AGAIN = 1.0
"""Seconds until a gauge is set again: Ray drops one that was not set for two reports, each at least 1 s long."""


LAST_LOOK = 40.0
"""The most seconds that a Ray which ends with its run waits until Prometheus has seen that end."""


class RayExporter:
    """An exporter of the driver's metrics. Its thread keeps gauges alive while the driver waits, until `close`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._gauges: dict[Metric, Gauge] = {}
        self._counters: dict[Metric, Counter] = {}
        self._values: dict[tuple[Metric, tuple[tuple[str, str], ...]], float] = {}
        self._ended: dict[str, str] = {}
        """The labels with which the run's end was counted."""
        self._closed = threading.Event()
        threading.Thread(target=self._keep, name="gauges", daemon=True).start()

    def apply(self, run: str, changes: Sequence[Change]) -> None:
        with self._lock:
            for change in changes:
                tags = {name: _ascii(label) for name, label in {"run": run, **change.labels}.items()}
                if change.metric.kind == "counter":
                    self._count(change.metric, change.value, tags)
                elif math.isnan(change.value):
                    self._values.pop((change.metric, tuple(tags.items())), None)
                else:
                    self._values[change.metric, tuple(tags.items())] = change.value
                    self._set(change.metric, change.value, tags)

    def close(self) -> None:
        self._closed.set()
        if self._ended and ray_address() == OWN:
            _await_look(self._ended)

    def _keep(self) -> None:
        while not self._closed.wait(AGAIN):
            with self._lock:
                for (metric, tags), value in self._values.items():
                    self._set(metric, value, dict(tags))

    def _set(self, metric: Metric, value: float, tags: dict[str, str]) -> None:
        if metric not in self._gauges:
            self._gauges[metric] = Gauge(metric.name, metric.help, ("run", *metric.labels))
        self._gauges[metric].set(value, tags)

    def _count(self, metric: Metric, more: float, tags: dict[str, str]) -> None:
        if more <= 0:  # Ray refuses to add nothing
            return
        if metric not in self._counters:
            self._counters[metric] = Counter(metric.name, metric.help, ("run", *metric.labels))
        self._counters[metric].inc(more, tags)
        if metric is BY_NAME["runs_ended"]:
            self._ended = tags


def _ascii(label: str) -> str:
    """Escape a label's other characters, which Ray does not take: the users' names of runs and rewards have some."""
    return label.encode("ascii", "backslashreplace").decode()


def _await_look(ended: dict[str, str]) -> None:
    """Wait until Prometheus has the counter of the run's end; not at all where RAY_PROMETHEUS_HOST does not answer.

    A Ray that was started for a run ends with it, and takes along what nobody has scraped: the run would seem to have
    vanished. Any other Ray keeps the counter.
    """
    import requests

    host = os.environ.get("RAY_PROMETHEUS_HOST", "")
    query = f'{BY_NAME["runs_ended"].scraped}{{driver="{ended["driver"]}"}}'
    deadline = time.monotonic() + LAST_LOOK
    while host and time.monotonic() < deadline:
        try:
            answer = requests.get(f"{host}/api/v1/query", params={"query": query}, timeout=2)
            if not answer.ok or answer.json()["data"]["result"]:
                return
        except (requests.RequestException, ValueError, KeyError, TypeError):
            return
        time.sleep(0.5)
