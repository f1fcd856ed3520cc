"""The metrics of a run in one process, on a port of its own for Prometheus to scrape."""

import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from pcpo_ray.errors import RunError
from pcpo_ray.metrics.catalogue import PREFIX, Metric
from pcpo_ray.metrics.changes import Change

HOST = "127.0.0.1"
"""The loopback address: there is no password, so nobody beyond this machine may ask."""


LAST_LOOK = 20.0
"""The most seconds that an ended run waits for Prometheus' next look, so that it is not taken for one that vanished."""

LATE = 2.0
"""Seconds by which a scrape may be late on a busy machine."""

ANSWER = 10.0
"""The most seconds that whoever scrapes may take to ask or to read."""


class Endpoint(Collector):
    """Serves http://127.0.0.1:PORT/metrics until closed; port 0 takes a free one, `port` is the one taken.

    Closing it waits for the next scrape, where somebody scrapes it again and again.

    Raises RunError if the port is taken already.
    """

    def __init__(self, port: int) -> None:
        self._lock = threading.Lock()
        self._values: dict[Metric, dict[tuple[str, ...], float]] = {}
        self._looked: tuple[float, ...] = ()
        """When it was scraped the last two times."""
        self._look = threading.Event()
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        try:
            self._server, self._thread = start_http_server(port, addr=HOST, registry=registry)
        except OSError as error:
            raise RunError(
                f"--metrics-port {port} cannot be had on {HOST}: {error.strerror}; give another, or 0 for any free one"
            ) from None
        self.port = int(self._server.server_port)
        _wait_for_answers(self._server)

    def apply(self, run: str, changes: Sequence[Change]) -> None:
        with self._lock:
            for change in changes:
                series = self._values.setdefault(change.metric, {})
                key = (run, *_in_order(change.metric, change.labels))
                if change.metric.kind == "counter":
                    series[key] = series.get(key, 0.0) + change.value
                elif math.isnan(change.value):
                    series.pop(key, None)
                else:
                    series[key] = change.value

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """Yield all metrics told so far, for prometheus_client."""
        with self._lock:
            found = {metric: dict(series) for metric, series in self._values.items()}
            self._looked = (*self._looked[-1:], time.monotonic())
            self._look.set()
        for metric, series in found.items():
            kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family = kind(PREFIX + metric.name, metric.help, labels=["run", *metric.labels])
            for values, number in series.items():
                family.add_metric(values, number)
            yield family

    def close(self) -> None:
        self._look.clear()
        self._look.wait(self._until_next_look())
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _until_next_look(self) -> float:
        """Return how long to wait for the next scrape: 0 where nobody scrapes at intervals, or does so no more."""
        with self._lock:
            if len(self._looked) < 2:
                return 0.0
            before, last = self._looked
            expected, since = last - before + LATE, time.monotonic() - last
        return min(expected - since, LAST_LOOK) if since < expected else 0.0


def _wait_for_answers(server: Any) -> None:
    """Have a server's closing wait for answers under way: the last one, with the run's end, would be cut off."""
    server.daemon_threads = False
    server.RequestHandlerClass = type("Handler", (server.RequestHandlerClass,), {"timeout": ANSWER})


def _in_order(metric: Metric, labels: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(labels[name] for name in metric.labels)
