"""What Prometheus would read."""

import urllib.request

from prometheus_client.parser import text_string_to_metric_families


def scraped(port):
    """Every sample that a port serves: name, labels, value."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    families = text_string_to_metric_families(text)
    return [(sample.name, sample.labels, sample.value) for family in families for sample in family.samples]
