"""The commands that talk to a cluster: submit a run, look at it, resize it, read its log, disturb it, stop it.

They join a cluster that is there, at host:port, or reach it over HTTP at its dashboard's address; none starts one.
"""

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from pcpo_ray.errors import ClusterError, RunError
from pcpo_ray.runs.lines import text

TAKEN = 60.0
"""Seconds in which a run must take what it is asked."""

EVERY = 2.0
"""Seconds from one status that is watched to the next."""

DASHBOARD = "http://127.0.0.1:8265"

Name = Annotated[str, typer.Argument(help="The name of a run that is going on.")]
Address = Annotated[
    str, typer.Option(envvar="RAY_ADDRESS", help="The cluster: host:port, auto, or http://HEAD:8265 from outside.")
]


def submit(
    config: Annotated[Path, typer.Argument(help="A YAML config, such as configs/shapes_pcpo.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Overrides of the config, each a.b.c=value.")] = None,
    runs: Annotated[
        str,
        typer.Option(
            help="Where run folders are: an absolute path that all machines of the cluster share, or a URL of storage."
        ),
    ] = "",
    address: Annotated[
        str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="The dashboard of the cluster, http://HEAD:8265.")
    ] = DASHBOARD,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="Show the run's log until it ends.")] = True,
    include_secret: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="A file that goes along though it looks like a secret; once for each."),
    ] = None,
) -> None:
    """Train on a cluster as one of its jobs, which goes on without this machine; the same again continues a run."""
    import tempfile

    from pcpo_ray.cluster.control import jobs, package
    from pcpo_ray.config import files
    from pcpo_ray.runs import urls

    run = files.load(config, overrides or [])
    if urls.is_url(runs):
        urls.checked(runs)  # refuses a URL with credentials: the command is part of the job's log
    elif not Path(runs).is_absolute():
        raise RunError(
            f"got --runs {runs!r}; expected an absolute path that all machines of the cluster share (NFS, a volume), "
            "or a URL such as s3://bucket/runs: the working folder of a job is deleted after it"
        )
    client = jobs.Client(address)
    if going := [job.submission_id for job in jobs.of(client, run.name) if not job.status.is_terminal()]:
        raise ClusterError(
            f"a run named {run.name!r} is going on in this cluster, as job {going[-1]}; "
            "stop it, or give this one another name"
        )
    with tempfile.TemporaryDirectory() as folder:
        packed = Path(folder) / "package.zip"
        content = package.pack(Path.cwd(), config, run, packed, include=include_secret or ())
        for line in content.lines():
            _print(line)
        words = ["pcpo-ray", "train", content.name, *(overrides or []), "--runs", runs, "--resume-if-started"]
        job = jobs.submit(client, run.name, words, packed)
        size = packed.stat().st_size / 2**20
    _print(f"submitted job {job} with {size:.1f} MiB of files; what may be done with it:")
    there = f"{run.name} --address {address}"
    for command in ("status {} --watch", "scale {} --samplers 2", "stop {}", "logs {} --follow"):
        _print(f"  pcpo-ray {command.format(there)}")
    if follow:
        _follow(client, job, f"pcpo-ray logs {there} --follow")


def status(
    name: Name,
    address: Address = "auto",
    watch: Annotated[bool, typer.Option("--watch", help="Again and again, until the run ends.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, an object a line.")] = False,
) -> None:
    """Show a run's state: step, reward, workers, their weights, tasks in flight, restarts and idle time."""
    if _elsewhere(address, ["status", name, *(["--watch"] if watch else []), *(["--json"] if as_json else [])]):
        return
    from pcpo_ray.cluster.control.client import Caller

    caller = Caller(name, address)
    if as_json:
        _each(caller.status, watch, lambda found: print(text(found), flush=True))
    else:
        _show(caller.status, watch)


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
    if _elsewhere(address, ["scale", name, *options]):
        return
    from pcpo_ray.cluster.control.client import Caller

    caller = Caller(name, address)
    before = caller.status()
    caller.ask(request)
    after = caller.wait(lambda found: request.id in found.get("done", ()), TAKEN, f"{name} to take the request")
    for what in asked:
        was, now = (_wanted(found, what) for found in (before, after))
        ready = f", {after[what]['ready']} ready so far" if what != "max_staleness" else ""
        _print(f"{what}: was {was}, is {now}{ready}")


def stop(
    name: Name,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Until it has stopped.")] = True,
    timeout: Annotated[float, typer.Option(min=1.0, help="Seconds to wait for that.")] = 600.0,
    address: Address = "auto",
) -> None:
    """Stop a run: it finishes the step under way and writes a checkpoint, from which the same command continues it."""
    from pcpo_ray.data.requests import ENDED, Request

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
    _print(
        f"{name} {found['state']} after step {found['step']} of {found['steps']}; its checkpoint: {found['checkpoint']}"
    )


def logs(
    name: Annotated[str, typer.Argument(help="The name of a run that was submitted.")],
    follow: Annotated[bool, typer.Option("--follow", help="Until the run ends.")] = False,
    events: Annotated[bool, typer.Option("--events", help="The newest events of a run that is going on.")] = False,
    address: Address = "auto",
) -> None:
    """The log of a run's newest job, or the events of any run: faults, resizes, checkpoints, versions."""
    if events:
        if not _elsewhere(address, ["logs", name, "--events", *(["--follow"] if follow else [])]):
            _events(name, address, follow)
        return
    from pcpo_ray.cluster.control import jobs
    from pcpo_ray.cluster.control.attach import attach

    client = jobs.Client(address if address.startswith("http") else f"http://{attach(address)}")
    found = jobs.of(client, name)
    if not found:
        raise ClusterError(
            f"no run named {name!r} was submitted to the cluster at {client.get_address()}; there are "
            f"{jobs.runs(client) or 'none'}. One that was started with pcpo-ray train logs where that was done; "
            "--events shows its events"
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
    options = [word for fault in faults for word in ("--kill", fault)] + ["--every", str(every)]
    if _elsewhere(address, ["chaos", name, *options, *([] if count is None else ["--count", str(count)])]):
        return
    from pcpo_ray.commands.chaos import inject_fault

    inject_fault(name, faults, every=every, count=count, address=address, say=_print)


COMMANDS = (submit, status, scale, stop, logs, chaos)
"""In the order in which --help lists them."""


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


def _each(look: Callable[[], Mapping[str, Any]], watch: bool, show: Callable[[Mapping[str, Any]], None]) -> None:
    """Show the status, and with `watch` every later one, to the last."""
    from pcpo_ray.data.requests import ENDED
    from pcpo_ray.errors import EndedError

    show(found := look())
    while watch and found.get("state") not in ENDED:
        time.sleep(EVERY)
        try:
            found = look()
        except EndedError as error:
            raise ClusterError(f"{error} without a last word: it was killed; see its log") from None
        show(found)


def _show(look: Callable[[], Mapping[str, Any]], watch: bool) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from pcpo_ray.commands.status_text import lines

    console = Console()
    if not (watch and console.is_terminal):
        return _each(look, watch, lambda found: _print("\n".join(lines(found))))
    with Live(console=console, auto_refresh=False) as live:
        _each(look, watch, lambda found: live.update(Text("\n".join(lines(found))), refresh=True))
    return None


def _events(name: str, address: str, follow: bool) -> None:
    from pcpo_ray.cluster.control.client import Caller
    from pcpo_ray.commands.status_text import event

    shown = 0.0

    def show(found: Mapping[str, Any]) -> None:
        nonlocal shown
        for row in found.get("events", ()):
            if row["time"] > shown:
                _print(event(row))
                shown = row["time"]

    _each(Caller(name, address).status, follow, show)


def _wanted(status: Mapping[str, Any], what: str) -> int:
    found = status[what]
    return int(found if what == "max_staleness" else found["wanted"])


def _print(line: str) -> None:
    print(line, flush=True)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
