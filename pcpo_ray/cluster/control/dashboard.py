"""The state of a cluster's runs, asked of its dashboard over HTTP: no job is made, and Ray's job list stays as it is.

A run's controller (controller.py) prints the driver's status into its own log, which the dashboard gives out. What runs
were submitted, and how their jobs ended, is in the list of jobs.
"""

import json
import re
import time
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlencode

from ray.dashboard.utils import ray_address_to_api_server_url
from ray.job_submission import JobDetails

from pcpo_ray.cluster.control import attach, jobs
from pcpo_ray.cluster.control.controller import MARK
from pcpo_ray.data.requests import ENDED, NAMESPACE
from pcpo_ray.errors import ClusterError

TAIL = 5
"""Lines that are read from the end of a controller's log."""

MOST = 10_000
"""Actors that are listed at most."""

ERROR = re.compile(r"(?:error: |[-0-9]+ [:0-9]+ ERROR +(?:failed: )?)(.+)")
"""A line of a job's log that tells an error, bare or stamped."""

GONE = "its driver ended without a last word: it was killed, or its machine went down"


def url_of(address: str) -> str:
    """Return the URL of a cluster's dashboard: the address itself, or what the head at host:port says of it.

    Nobody joins the cluster for it. Raises ClusterError.
    """
    if address.startswith(("http://", "https://")):
        return address
    found = attach.checked(address)
    try:
        return str(ray_address_to_api_server_url(found))
    except (ValueError, RuntimeError, OSError) as error:
        raise ClusterError(
            f"the cluster at {found} has no dashboard: {error}; give --address http://HEAD:8265"
        ) from error


def look(client: jobs.Client, run: str) -> dict[str, Any] | None:
    """Return how a run is, as `pcpo_ray.runs.look.look` does; None where the cluster has not heard of it."""
    return _look(client, run, _controllers(client).get(run), _submitted(client).get(run))


def looks(client: jobs.Client) -> list[dict[str, Any]]:
    """Look at every run that the cluster has heard of, the one heard of last first."""
    actors, submitted = _controllers(client), _submitted(client)
    names = {**actors, **submitted}
    found = [_look(client, name, actors.get(name), submitted.get(name)) for name in names]
    return sorted((row for row in found if row is not None), key=lambda row: float(row["age"]))


def _look(
    client: jobs.Client, run: str, actor: Mapping[str, Any] | None, job: JobDetails | None
) -> dict[str, Any] | None:
    if actor is None and job is None:
        return None
    told = {} if actor is None else _told(client, actor["actor_id"])
    alive = actor is not None and actor["state"] != "DEAD"
    row = {"run": run, "step": 0, "steps": 0, **told}
    now = time.time()
    if job is not None:
        row["job"] = job.submission_id
        began, end = (job.start_time or 0) / 1000, (job.end_time or 0) / 1000
        if row.get("time", 0.0) < began and not alive:  # told by an earlier job of the same name
            row = {"run": run, "step": 0, "steps": 0, "job": job.submission_id}
        row["again"] = (job.metadata or {}).get(jobs.AGAIN) or row.get("again", "")
        if not alive:
            row |= _of_job(job, row, now - began)
            row.setdefault("time", end or began or now)
    elif not alive and row.get("state") not in ENDED:
        row |= {"state": "failed", "error": GONE}
    row.setdefault("state", "starting")
    row["age"] = max(0.0, now - row.get("time", now))
    return {**row, "place": row.get("folder", ""), "again": row.get("again", "")}


def _of_job(job: JobDetails, row: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Tell the state of a run without a controller from its job, and from what it told last."""
    status = str(getattr(job.status, "value", job.status))
    if row.get("state") in ENDED:  # the job itself may still write the report
        return {}
    if not job.status.is_terminal():
        waiting = f"job {job.submission_id}, which is {status} for {max(0.0, seconds):.0f} s"
        return {"state": "starting", "waiting": waiting, "time": time.time()}  # Ray answers for it
    if status == "SUCCEEDED":
        return {"state": "finished"}
    if status == "STOPPED":
        return {"state": "stopped", "error": "its job was stopped"}
    return {"state": "failed", "error": f"job {job.submission_id}: {brief(job.message or status)}"}


def brief(message: str) -> str:
    """Shorten what Ray says of a job that failed: not the log, which it quotes, but for the error in it."""
    said, _, log = message.partition(", last available logs")
    errors = [error for line in log.splitlines() if (error := _error(line))]
    first = said.strip().splitlines()[0] if said.strip() else "no word from Ray"
    return f"{first}: {errors[-1]}" if errors else first


def _error(line: str) -> str:
    """Return the error that a line of a job's log tells, in any form in which `commands.log` writes one; else ""."""
    if found := ERROR.match(line):
        return found[1]
    try:
        row = json.loads(line) if line.startswith("{") else {}
    except ValueError:
        return ""
    return str(row.get("message", "")).removeprefix("failed: ") if row.get("level") == "error" else ""


def _controllers(client: jobs.Client) -> dict[str, Mapping[str, Any]]:
    """Return the controllers of runs by name: the one that lives, or the last one."""
    query = urlencode(
        {
            "filter_keys": "ray_namespace",
            "filter_predicates": "=",
            "filter_values": NAMESPACE,
            "limit": MOST,
            "timeout": int(client.answer),
        }
    )
    found = _data(client, f"/api/v0/actors?{query}")
    actors: Iterable[Mapping[str, Any]] = (found.get("data", {}).get("result", {}) or {}).get("result", [])
    order = sorted(actors, key=lambda actor: (actor["state"] != "DEAD", actor.get("job_id") or "", actor["actor_id"]))
    return {actor["name"]: actor for actor in order if actor.get("name")}


def _submitted(client: jobs.Client) -> dict[str, JobDetails]:
    """Return the newest job of each run that was submitted."""
    listed = [job for job in client.list_jobs() if jobs.RUN in (job.metadata or {}) and job.submission_id]
    return {job.metadata[jobs.RUN]: job for job in sorted(listed, key=lambda job: job.start_time or 0)}


def _told(client: jobs.Client, actor: str) -> dict[str, Any]:
    """Return the status that a controller printed last; {} where its log is gone or not there yet."""
    query = urlencode({"actor_id": actor, "lines": TAIL, "suffix": "out", "timeout": int(client.answer)})
    answer = client.asked("GET", f"/api/v0/logs/file?{query}")
    if answer.status_code != 200:
        return {}
    for line in reversed(answer.text.splitlines()):
        _, mark, text = line.partition(MARK)
        if mark:
            try:
                found = json.loads(text)
            except ValueError:
                continue
            return found if isinstance(found, dict) else {}
    return {}


def _data(client: jobs.Client, endpoint: str) -> dict[str, Any]:
    answer = client.asked("GET", endpoint)
    try:
        found = answer.json() if answer.status_code == 200 else None
    except ValueError:
        found = None
    if not isinstance(found, dict) or not found.get("result", False):
        raise ClusterError(f"{client.get_address()} answered {answer.status_code} to {endpoint.partition('?')[0]}")
    return found
