"""Jobs on a cluster, through Ray's Jobs API over HTTP: every request has a deadline, every error says what to do."""

import asyncio
import logging
import os
import re
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import requests
from ray.dashboard.modules import dashboard_sdk
from ray.dashboard.modules.job import sdk
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient

from pcpo_ray.cluster.control.attach import no_token, token_hint
from pcpo_ray.errors import ClusterError

CONNECT, ANSWER = 10.0, 60.0
"""Seconds in which the dashboard must be reached, and must answer."""

AGENT, NO_AGENT = 60.0, "No available agent"
"""Seconds that a dashboard may be there before the agent that starts jobs, and what it answers meanwhile."""

WHY_NO_AGENT = (
    "the agent that starts jobs is not there: dashboard_agent.log on the head says why. If another Ray on that machine "
    "has its port, start the head with --dashboard-agent-listen-port"
)

END = 30.0
"""Seconds from the end of a job's log, or from its stop, to its end."""

STOP = 600
"""Seconds from Ray's own stop of a job (its dashboard, `ray job stop`) to its kill: the run writes a checkpoint."""

RUN, AGAIN = "pcpo_ray_run", "pcpo_ray_again"
"""The keys of a job's metadata that say which run it is, and the command that continues it."""

KILLED = (137, -9)
"""Exit codes of a driver that was killed, which has said nothing itself."""

PREAMBLE = re.compile(r"^(Running entrypoint for job |[-0-9]+ [0-9:,]+\tINFO job_manager).*\n", re.MULTILINE)
"""The lines that Ray itself writes into a job's log."""

OVERRIDING = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")


class Client(JobSubmissionClient):
    """Ray's own client, of the address that it is given, which must `answer` within so many seconds.

    Raises ClusterError.
    """

    def __init__(self, address: str, answer: float = ANSWER) -> None:
        self.answer = answer
        if not address.startswith(("http://", "https://")):
            raise ClusterError(f"got the address {address!r}; expected that of Ray's dashboard, http://HEAD:8265")
        for module in (sdk, dashboard_sdk):
            module.logger.setLevel(logging.WARNING)  # each package and each end of a log would be a line
        hidden = {name: os.environ.pop(name) for name in OVERRIDING if name in os.environ}  # Ray would prefer these
        try:
            super().__init__(address)
        except AuthenticationError as error:  # before anything is sent
            raise no_token(address, error) from error
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise ClusterError(f"{address} is no dashboard of Ray: {error}; expected http://HEAD:8265") from error
        finally:
            os.environ.update(hidden)

    def asked(self, method: str, endpoint: str) -> Any:
        """Ask something of the dashboard that Ray's own client has no method for; return its answer."""
        return self._do_request(method, endpoint)

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        deadline = time.monotonic() + AGENT
        while True:
            answer = self._ask(method, endpoint, **options)
            if answer.status_code != 500 or NO_AGENT not in answer.text or time.monotonic() > deadline:
                return answer
            time.sleep(1.0)

    def _ask(self, method: str, endpoint: str, **options: Any) -> Any:
        try:
            return super()._do_request(method, endpoint, timeout=(CONNECT, self.answer), **options)
        except AuthenticationError as error:
            what = "wants a token" if "required" in str(error) else "refuses this token"
            raise ClusterError(f"the Ray cluster at {self._address} {what}; {token_hint()}") from error
        except requests.ReadTimeout as error:
            raise ClusterError(
                f"the server at {self._address} took the connection and was silent for {self.answer:g} s: a Ray "
                "dashboard that is busy or hangs, or no dashboard at all; try again, or see dashboard.log on its head"
            ) from error
        except requests.RequestException as error:
            inner = error.args[0] if error.args else error
            raise ClusterError(
                f"no Ray dashboard at {self._address}: {getattr(inner, 'reason', inner)}; "
                "give --address http://HEAD:8265, and see that the head has a dashboard, whose port can be reached "
                "from here"
            ) from error

    def _raise_error(self, r: Any) -> None:
        hint = f"; {WHY_NO_AGENT}" if NO_AGENT in r.text else ""
        raise ClusterError(f"{self._address} answered {r.status_code}: {r.text[:500]}{hint}")


def check_agent(client: Client) -> None:
    """Refuse a cluster whose head says that no agent of it starts jobs, before files are uploaded. Raises ClusterError.

    The port of an agent that could not listen is -1. What says nothing of it passes.
    """
    answer = client.asked("GET", "/nodes?view=summary")
    try:
        nodes = [node["raylet"] for node in answer.json()["data"]["summary"]] if answer.status_code == 200 else []
        silent = any(node.get("isHeadNode") and node.get("dashboardAgentListenPort") == -1 for node in nodes)
    except (ValueError, LookupError, TypeError, AttributeError):  # another version of Ray
        return
    if silent:
        raise ClusterError(f"the Ray cluster at {client.get_address()} takes no jobs; {WHY_NO_AGENT}")


def submit(client: Client, run: str, words: Sequence[str], package: Path, again: str = "") -> str:
    """Start a run by a command, in the folder that the zip `package` holds; the job's id.

    `again` is the command that continues the run.
    """
    job = f"{re.sub(r'[^A-Za-z0-9._-]', '-', run)}-{time.strftime('%Y%m%d-%H%M%S')}"
    client.submit_job(
        entrypoint=shlex.join(words),
        submission_id=job,
        runtime_env={
            "working_dir": str(package),
            "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP), "PCPO_RAY_AGAIN": again},
        },
        metadata={RUN: run, AGAIN: again},
    )
    return job


def do(client: Client, words: Sequence[str], write: Callable[[str], None]) -> bool:
    """Run a short command on the cluster and write what it says; whether it succeeded. No trace of it is left."""
    job = client.submit_job(entrypoint=shlex.join(words))
    try:
        follow(client, job, lambda text: write(PREAMBLE.sub("", text)))
    finally:
        client.stop_job(job)
        details = _ended(client, job)
        if details.status.is_terminal():
            client.delete_job(job)
    return bool(details.status == "SUCCEEDED")


def of(client: Client, run: str) -> list[JobDetails]:
    """The jobs of a run, the newest last."""
    jobs = [job for job in client.list_jobs() if (job.metadata or {}).get(RUN) == run and job.submission_id]
    return sorted(jobs, key=lambda job: job.start_time or 0)


def runs(client: Client) -> list[str]:
    """The names of the runs that were submitted."""
    return sorted({job.metadata[RUN] for job in client.list_jobs() if RUN in (job.metadata or {})})


def follow(client: Client, job: str, write: Callable[[str], None]) -> JobDetails:
    """Write a job's log, from its beginning until it has ended; what Ray says of it then. Raises ClusterError."""

    async def tail() -> None:
        async for text in client.tail_job_logs(job):
            write(text)

    try:
        asyncio.run(tail())
    except (aiohttp.ClientError, RuntimeError, OSError) as error:
        raise ClusterError(f"the log of {job} broke off: {error}; the job may well go on") from error
    return _ended(client, job)


def _ended(client: Client, job: str) -> JobDetails:
    """A job whose end is near, when it has ended, or after `END` seconds."""
    deadline = time.monotonic() + END
    while not (details := client.get_job_info(job)).status.is_terminal() and time.monotonic() < deadline:
        time.sleep(0.5)
    return details


def check_done(details: JobDetails) -> None:
    """Raises ClusterError for a job that did not succeed, with what Ray says of it, without the log that it quotes."""
    if details.status == "SUCCEEDED":
        return
    hint = ""
    if details.driver_exit_code == 127:
        hint = "; install pcpo_ray into the Python of the cluster's machines, and have its bin folder on their PATH"
    elif details.driver_exit_code in KILLED:
        hint = "; it was killed, by hand or as memory ran out"
        again = (details.metadata or {}).get(AGAIN)
        hint += f"; continue with: {again}" if again else ""
    said = (details.message or "").partition(", last available logs")[0]
    raise ClusterError(f"job {details.submission_id} is {details.status}: {said}{hint}")
