"""Talking to runs on a cluster: the driver's end, the client's end, jobs."""
