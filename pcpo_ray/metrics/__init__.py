"""Metrics: one catalogue, from which come what Prometheus scrapes, the dashboards and the alerts."""
