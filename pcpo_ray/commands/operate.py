"""The commands that talk to a cluster: submit a run, look at it, resize it, read its log, disturb it, stop it.

They join a cluster that is there, at host:port, or reach it over HTTP at its dashboard's address; none starts one.
"""

import shlex
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from pcpo_ray.commands import wrapped
from pcpo_ray.commands.look import CLUSTER_VARIABLES, Address, known_name, list_runs, status
from pcpo_ray.errors import ClusterError, RunError
from pcpo_ray.runs import look
from pcpo_ray.runs.lines import text
from pcpo_ray.runs.urls import is_url

TAKEN = 60.0
"""Seconds in which a run must take what it is asked."""

EVERY = 2.0
"""Seconds from one status that is watched to the next."""

DASHBOARD = "http://127.0.0.1:8265"

SETTLE = 12.0
"""Seconds in which workers that a cluster has room for get their place."""

Name = Annotated[str, typer.Argument(metavar="RUN", help="A run that is going on in a cluster: its name or folder.")]


def submit(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="A YAML config, or a recipe's name, such as shapes_pcpo.")
    ],
    runs: Annotated[
        str,
        typer.Option(
            help="Where run folders are: an absolute path that all machines of the cluster share, or a URL of storage."
        ),
    ],
    overrides: Annotated[list[str] | None, typer.Argument(help="Overrides of the config, each a.b.c=value.")] = None,
    address: Annotated[
        str,
        typer.Option(
            envvar=[*CLUSTER_VARIABLES], help="The cluster's dashboard, http://HEAD:8265, or host:port, or auto."
        ),
    ] = DASHBOARD,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="Show the run's log until it ends.")] = True,
    include_secret: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="A file that goes along though it looks like a secret; once for each."),
    ] = None,
) -> None:
    """Train on a cluster as one of its jobs, which goes on without this machine; the same again continues a run."""
    import tempfile

    from pcpo_ray.cluster.control import dashboard, jobs, package
    from pcpo_ray.config import files, recipes
    from pcpo_ray.runs import urls

    package.check_words(overrides or [])
    run = files.load(config, overrides or [])
    if urls.is_url(runs):
        urls.checked(runs)  # refuses a URL with credentials: the command is part of the job's log
    elif not Path(runs).is_absolute():
        raise RunError(
            f"got --runs {runs!r}; expected an absolute path that all machines of the cluster share (NFS, a volume), "
            "or a URL such as s3://bucket/runs: the working folder of a job is deleted after it"
        )
    client = jobs.Client(dashboard.url_of(address))
    jobs.check_agent(client)
    if going := [job.submission_id for job in jobs.of(client, run.name) if not job.status.is_terminal()]:
        raise ClusterError(
            f"a run named {run.name!r} is going on in this cluster, as job {going[-1]}; "
            "stop it, or give this one another name"
        )
    from pcpo_ray.commands import submission

    _print("checking the config, the rewards and the prompts before anything is sent")
    for line in submission.check(run, runs):
        _print(line)
    again = ["pcpo-ray", "submit", str(config), *(overrides or []), "--runs", runs]
    where = urls.without_user(address)
    again += [] if address == DASHBOARD else ["--address", where]
    again += [word for path in include_secret or () for word in ("--include-secret", path)]
    with tempfile.TemporaryDirectory() as folder:
        packed = Path(folder) / "package.zip"
        content = package.pack(Path.cwd(), recipes.located(config), run, packed, include=include_secret or ())
        for line in content.lines():
            _print(line)
        words = ["pcpo-ray", "train", content.name, *(overrides or []), "--runs", runs, "--resume-if-started"]
        job = jobs.submit(client, run.name, words, packed, shlex.join(again))
        size = packed.stat().st_size / 2**20
    _print(f"submitted job {job} with {size:.1f} MiB of files; what may be done with it:")
    there = f"{run.name} --address {where}"
    for command in ("status {} --watch", "scale {} --samplers 2", "stop {}", "logs {} --follow"):
        print(f"  pcpo-ray {command.format(there)}", flush=True)  # whole, to be copied
    if follow:
        _follow(client, job, f"pcpo-ray logs {there} --follow")


def scale(
    name: Name,
    samplers: Annotated[int | None, typer.Option(help="How many samplers there are to be.")] = None,
    scorers: Annotated[int | None, typer.Option(help="How many scorers there are to be.")] = None,
    max_staleness: Annotated[int | None, typer.Option(help="The new rollout.max_staleness.")] = None,
    address: Address = "auto",
) -> None:
    """Resize a run while it goes on: workers that are too many finish what they hold, new ones join when ready."""
    from pcpo_ray.data.requests import Request

    wished = {"samplers": samplers, "scorers": scorers, "max_staleness": max_staleness}
    asked = {what: value for what, value in wished.items() if value is not None}
    request = Request(samplers=samplers, scorers=scorers, max_staleness=max_staleness)
    if not asked:
        raise ClusterError("nothing was asked for; give --samplers, --scorers or --max-staleness")
    options = [word for what, value in asked.items() for word in (f"--{what.replace('_', '-')}", str(value))]
    name = known_name(name)
    if _elsewhere(address, ["scale", name, *options]):
        return
    from pcpo_ray.cluster.control.client import Caller

    caller = Caller(name, address)
    before = caller.status()
    caller.ask(request)
    if before["state"] == "starting":
        _print(f"{name} is starting; it takes the request once its first workers are ready")
        return
    after = caller.wait(lambda found: request.id in found.get("done", ()), TAKEN, f"{name} to take the request")
    deadline = time.monotonic() + SETTLE
    while any(_unsettled(after, what) for what in asked) and time.monotonic() < deadline:
        time.sleep(EVERY / 4)
        after = caller.status()
    for what in asked:
        was, now = (_wanted(found, what) for found in (before, after))
        _print(f"{what}: was {was}, is {now}{_readiness(after, what)}")


def stop(
    name: Name,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Until it has stopped.")] = True,
    timeout: Annotated[float, typer.Option(min=1.0, help="Seconds to wait for that.")] = 600.0,
    address: Address = "auto",
) -> None:
    """Stop a run: it finishes the step under way and writes a checkpoint, from which the same command continues it.

    One whose workers are still starting stops at once.
    """
    from pcpo_ray.data.requests import ENDED, Request

    name = known_name(name)
    if _elsewhere(address, ["stop", name, "--timeout", str(timeout), *([] if wait else ["--no-wait"])]):
        return
    from pcpo_ray.cluster.control.client import Caller

    caller = Caller(name, address)
    caller.ask(Request(stop=True))
    if not wait:
        _print(f"{name} stops after the step under way")
        return
    found = caller.wait(lambda found: found.get("state") in ENDED, timeout, f"{name} to stop")
    if found["state"] == "failed":
        raise ClusterError(f"{name} failed after step {found['step']}: {found['error']}")
    if "checkpoint" not in found:
        _print(f"{name} stopped while its workers started; the same command starts it again")
        return
    _print(
        f"{name} {found['state']} after step {found['step']} of {found['steps']}; its checkpoint: {found['checkpoint']}"
    )


def logs(
    name: Annotated[str, typer.Argument(metavar="RUN", help="A run that was submitted, or with --events any run.")],
    follow: Annotated[bool, typer.Option("--follow", help="Until the run ends.")] = False,
    events: Annotated[
        bool, typer.Option("--events", help="All events in a run's folder; of a run elsewhere, the newest.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --events: as JSON, an object a line.")] = False,
    address: Address = "auto",
) -> None:
    """Show the log of a run's newest job, or the events of any run: faults, resizes, checkpoints, versions."""
    if as_json and not events:
        raise RunError("got --json without --events; a job's log is text: add --events, or leave out --json")
    place = look.place_of(name)
    name = known_name(name)
    if events:
        options = [*(["--follow"] if follow else []), *(["--json"] if as_json else [])]
        if address == "auto" and not is_url(place) and look.is_run(Path(place)):
            _events(lambda: look.with_events(Path(place)), follow, as_json=as_json)
        elif not _elsewhere(address, ["logs", name, "--events", *options]):
            from pcpo_ray.cluster.control.client import Caller

            _events(Caller(name, address).status, follow, as_json=as_json)
        return
    from pcpo_ray.cluster.control import jobs
    from pcpo_ray.cluster.control.attach import attach

    client = jobs.Client(address if address.startswith("http") else f"http://{attach(address)}")
    found = jobs.of(client, name)
    if not found:
        raise ClusterError(
            f"no run named {name!r} was submitted to the cluster at {client.get_address()}; there are "
            f"{', '.join(jobs.runs(client)) or 'none'}. One that was started with pcpo-ray train logs where that was "
            "done; --events shows its events"
        )
    if follow:
        _follow(client, found[-1].submission_id, f"pcpo-ray logs {name} --follow --address {address}")
    else:
        _write(client.get_job_logs(found[-1].submission_id))


def chaos(
    name: Name,
    kill: Annotated[
        list[str] | None, typer.Option(help="sampler, all_samplers, hang, scorer or learner; several take turns.")
    ] = None,
    every: Annotated[float, typer.Option(min=1.0, help="Seconds from one fault to the next.")] = 30.0,
    count: Annotated[int | None, typer.Option(min=1, help="How many faults; until the run ends if left out.")] = None,
    address: Address = "auto",
) -> None:
    """Kill workers of a run that is going on, to see that it goes on; `hang` stops a sampler without ending it."""
    from pcpo_ray.data.requests import Request

    requests = [Request(fault=fault) for fault in kill or ["sampler"]]  # type: ignore[arg-type]
    faults = [request.fault for request in requests if request.fault is not None]
    name = known_name(name)
    options = [word for fault in faults for word in ("--kill", fault)] + ["--every", str(every)]
    if _elsewhere(address, ["chaos", name, *options, *([] if count is None else ["--count", str(count)])]):
        return
    from pcpo_ray.commands.chaos import inject_fault

    inject_fault(name, faults, every=every, count=count, address=address, say=_print)


COMMANDS: dict[str, tuple[Callable[..., None], str]] = {
    "submit": (
        submit,
        "pcpo-ray submit shapes_pcpo name=mine --runs /shared/runs --address http://HEAD:8265",
    ),
    "list": (list_runs, "pcpo-ray list runs"),
    "status": (status, "pcpo-ray status mine --watch"),
    "scale": (scale, "pcpo-ray scale mine --samplers 4"),
    "stop": (stop, "pcpo-ray stop mine"),
    "logs": (logs, "pcpo-ray logs mine --follow"),
    "chaos": (chaos, "pcpo-ray chaos mine --kill sampler --every 30"),
}
"""The commands and an example of each, in the order in which --help lists them."""


def _elsewhere(address: str, words: list[str]) -> bool:
    """With an address over HTTP, run the command inside of the cluster. Exits with 1 where it fails there."""
    if not address.startswith(("http://", "https://")):
        return False
    from pcpo_ray.cluster.control import jobs

    if not jobs.do(jobs.Client(address), ["pcpo-ray", *words], _write):
        raise typer.Exit(1)
    return True


def _follow(client: Any, job: str, again: str) -> None:
    from pcpo_ray.cluster.control import jobs

    try:
        details = jobs.follow(client, job, _write)
    except KeyboardInterrupt:
        _print(f"\n{job} goes on; see its log again with: {again}")
        raise
    jobs.check_done(details)


def _each(looked: Callable[[], Mapping[str, Any]], watch: bool, show: Callable[[Mapping[str, Any]], None]) -> None:
    """Show the status, and with `watch` every later one, to the last."""
    from pcpo_ray.data.requests import ENDED
    from pcpo_ray.errors import EndedError

    show(found := looked())
    while watch and found.get("state") not in (*ENDED, "lost"):
        time.sleep(EVERY)
        try:
            found = looked()
        except EndedError as error:
            raise ClusterError(f"{error} without a last word: it was killed; see its log") from None
        show(found)


def _events(found: Callable[[], Mapping[str, Any]], follow: bool, *, as_json: bool) -> None:
    from pcpo_ray.commands.event_text import line

    told: set[str] = set()

    def show(found: Mapping[str, Any]) -> None:
        for row in found.get("events", ()):
            if (whole := text(row)) not in told:
                told.add(whole)
                print(whole, flush=True) if as_json else _print(line(row))

    _each(found, follow, show)


def _unsettled(status: Mapping[str, Any], what: str) -> bool:
    """Return whether workers of a role may still get a place at once."""
    if what == "max_staleness":
        return False
    size = status[what]
    return bool(size.get("unplaced") and not size.get("room"))


def _readiness(status: Mapping[str, Any], what: str) -> str:
    if what == "max_staleness":
        return ""
    size = status[what]
    if size.get("room") and size["ready"] < size["wanted"]:  # else it is told of what was asked for earlier
        return f", {size['ready']} ready; {size['room']}"
    starting = size["wanted"] - size["ready"]
    return f", {size['ready']} ready" + (f", {starting} starting" if starting > 0 else "")


def _wanted(status: Mapping[str, Any], what: str) -> int:
    found = status[what]
    return int(found if what == "max_staleness" else found["wanted"])


def _print(line: str) -> None:
    wrapped.say(Console(file=sys.stdout), line)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
