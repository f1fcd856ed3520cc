"""Cluster: the stages on Ray, each role in processes of its own, and the talk with runs on a cluster."""
