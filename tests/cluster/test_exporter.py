"""Ray's exporter gives Ray nothing that it refuses, and ends; what arrives: tests/chaos/test_prometheus.py."""

import threading
import time

import pytest

from pcpo_ray.cluster.exporter import RayExporter
from pcpo_ray.metrics.changes import change

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]


@pytest.fixture
def exporter(monkeypatch):
    monkeypatch.setattr("pcpo_ray.cluster.exporter.AGAIN", 0.05)
    made = RayExporter()
    yield made
    made.close()


@pytest.fixture
def set_to(exporter, monkeypatch):
    """The values that gauges are set to."""
    found, real = [], exporter._set

    def setting(metric, value, tags):
        real(metric, value, tags)
        found.append((metric.name, value))

    monkeypatch.setattr(exporter, "_set", setting)
    return found


def test_a_gauge_is_set_again_and_again_until_it_has_no_value_any_more(exporter, set_to):
    exporter.apply("r", [change("loss", 0.5)])
    deadline = time.monotonic() + 60
    while len(set_to) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert set(set_to) == {("pcpo_loss", 0.5)}
    exporter.apply("r", [change("loss", float("nan"))])
    count = len(set_to)
    time.sleep(0.3)
    assert len(set_to) == count


def test_counters_that_do_not_grow_are_not_refused_by_ray(exporter):
    exporter.apply("r", [change("samples", 0, purpose="train"), change("samples", 2, purpose="train")])
    assert exporter._counters.keys() == {change("samples", 1, purpose="train").metric}


def test_names_in_any_script_are_labels(exporter, set_to):
    exporter.apply("прогон", [change("reward", 0.5, reward="красота"), change("samples", 2, purpose="train")])
    assert set_to == [(change("reward", 0.5, reward="").metric.name, 0.5)]


def test_closing_ends_the_thread():
    before = set(threading.enumerate())
    exporter = RayExporter()
    (made,) = [thread for thread in set(threading.enumerate()) - before if thread.name == "gauges"]
    exporter.close()
    made.join(timeout=60)
    assert not made.is_alive()
