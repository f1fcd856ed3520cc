"""`pcpo-ray list` and `pcpo-ray status`: which runs there are, and how one is, answered at once.

What a run's folder holds is enough. Where it cannot be reached from here, the cluster's dashboard is asked; neither
starts a job, nor joins the cluster.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from pcpo_ray.commands import wrapped
from pcpo_ray.data.requests import ENDED
from pcpo_ray.errors import ClusterError, PcpoError, RunError
from pcpo_ray.runs import look
from pcpo_ray.runs.lines import text
from pcpo_ray.runs.urls import is_url, shown

CODES = {"finished": 0, "starting": 10, "stopped": 12, "failed": 13, "lost": 13, look.NONE: 14}
GOES_ON = 11
"""Exit codes of `status` by state, and that of a run in any other state, which goes on.

0 is what a shell takes for done and well: `pcpo-ray status demo && pcpo-ray evaluate demo`. At 10 and 11 a run is not
done yet; from 12 on it will not be by itself.
"""

EVERY = 2.0
"""Seconds from one status that is watched to the next."""

ANSWER = 10.0
"""Seconds within which a dashboard that is looked at must answer."""

APPEARS = 30.0
"""Seconds that --watch waits for a run that nobody has heard of yet."""

CLUSTER_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""Environment variables that name the cluster, in the order in which Ray's own job commands heed them."""

Address = Annotated[
    str,
    typer.Option(envvar=[*CLUSTER_VARIABLES], help="The cluster: host:port, auto, or http://HEAD:8265 from outside."),
]
Runs = Annotated[str, typer.Option(help="Where run folders are: a path, or a URL of storage.")]
Look = Callable[[], dict[str, Any] | None]

EPILOG = (
    "Exit codes: 0 finished; 10 starting, 11 going on; 12 stopped, 13 failed, 14 no such run. "
    "Example: pcpo-ray status demo --watch"
)


def status(
    context: typer.Context,
    name: Annotated[
        str,
        typer.Argument(metavar="RUN", help="A run's name, folder or URL; all runs if left out.", show_default=False),
    ] = "",
    runs: Runs = look.RUNS,
    address: Address = "auto",
    watch: Annotated[bool, typer.Option("--watch", help="Again and again, until the run ends.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, an object a line.")] = False,
) -> None:
    """Show how a run is: state, step, reward, workers, restarts, idle time, and what to do next."""
    given = _given(context)
    if not name:
        return show_list(runs, address if given else None, as_json=as_json)
    find = finder(name, runs, address, explicit=_source(context) == "COMMANDLINE")
    found = _shown(find, name, watch=watch, as_json=as_json)
    raise typer.Exit(CODES.get(found["state"], GOES_ON))


def list_runs(
    context: typer.Context,
    folder: Annotated[
        str, typer.Argument(help="The folder that holds run folders; as --runs.", show_default=False)
    ] = "",
    runs: Annotated[str, typer.Option(help="The same, named as the other commands name it.")] = look.RUNS,
    address: Address = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, one array.")] = False,
) -> None:
    """List the runs in a folder, and those of a cluster if its address is given: state, step, reward, change, age."""
    show_list(folder or runs, address if _given(context) else None, as_json=as_json)


def finder(name: str, runs: str, address: str, *, explicit: bool) -> Look:
    """Return a function that looks for a run: in its folder, else in the cluster; only there if that is `explicit`."""
    place = look.place_of(name, runs)

    def find() -> dict[str, Any] | None:
        if not explicit and (found := look.look(place)) is not None:
            return found
        if not explicit and address == "auto" and not cluster_here():
            return {"run": name, "state": look.NONE, "place": place}
        try:
            of_cluster = _of_cluster(look.name_of(name), address)
        except ClusterError as error:
            if explicit or address != "auto":
                raise
            return {"run": name, "state": look.NONE, "place": place, "unanswered": str(error)}  # nobody named it
        return of_cluster if explicit or of_cluster["state"] != look.NONE else {**of_cluster, "place": place}

    return find


def cluster_here() -> bool:
    """Return whether this user seems to run a cluster of Ray on this machine, without loading Ray."""
    import psutil

    seen = psutil.process_iter(["name", "uids"])
    own = (one for one in seen if one.info["uids"] is not None and one.info["uids"].real == os.getuid())
    return any(process.info["name"] in ("raylet", "gcs_server") for process in own)


def _given(context: typer.Context) -> bool:
    """Return whether the user names a cluster, in the command or the environment."""
    return _source(context) != "DEFAULT"


def _source(context: typer.Context) -> str:
    """Return where --address comes from: COMMANDLINE, ENVIRONMENT or DEFAULT."""
    source = context.get_parameter_source("address")
    return "DEFAULT" if source is None else str(source.name)


def _of_cluster(name: str, address: str) -> dict[str, Any]:
    """Ask a cluster for a run; if it has not heard of it, return which runs it has heard of."""
    from pcpo_ray.cluster.control import dashboard, jobs

    client = jobs.Client(dashboard.url_of(address), answer=ANSWER)
    if (found := dashboard.look(client, name)) is not None:
        return found
    there = [row["run"] for row in dashboard.looks(client)]
    return {"run": name, "state": look.NONE, "cluster": client.get_address(), "there": there}


# -- status ---------------------------------------------------------------------------------------------------------


def _each(find: Look, name: str, *, watch: bool) -> Iterator[dict[str, Any]]:
    """Yield how a run is, and with `watch` every later state, to the last."""
    began = time.monotonic()
    while True:
        found = find() or {"run": name, "state": look.NONE}
        known = found["state"] != look.NONE
        yield found
        if not watch or found["state"] in (*ENDED, "lost") or (not known and time.monotonic() - began > APPEARS):
            return
        time.sleep(EVERY)


def _shown(find: Look, name: str, *, watch: bool, as_json: bool) -> dict[str, Any]:
    """Show how a run is; return that, or the last of what was watched."""
    from rich.live import Live
    from rich.text import Text

    console = Console(file=sys.stdout)
    found: dict[str, Any] = {}
    if as_json:
        for found in _each(find, name, watch=watch):
            print(text(found), flush=True)
    elif watch and console.is_terminal and not console.is_dumb_terminal:
        with Live(console=console, auto_refresh=False, vertical_overflow="visible") as live:
            for found in _each(find, name, watch=watch):
                live.update(Text("\n".join(_lines(found, console.width))), refresh=True)
    else:
        for found in _each(find, name, watch=watch):
            absent = found["state"] == look.NONE
            width = console.width if console.is_terminal else None
            print("\n".join(_lines(found, width)), file=sys.stderr if absent else sys.stdout, flush=True)
    return found


def _lines(found: Mapping[str, Any], width: int | None) -> list[str]:
    from pcpo_ray.commands.status_text import lines

    if found["state"] == look.NONE:
        told = f"error: {'; '.join(_absent(found))}"
        return [told] if width is None else wrapped.rows(told, width)
    return lines(found, width)


def _absent(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield where a run is not: in its folder, in the cluster that was asked, or in either."""
    if place := found.get("place"):
        yield f"there is no run at {shown(place)}" if is_url(place) else str(look.no_run(place))
    if "unanswered" in found:
        yield f"the cluster on this machine could not be asked: {found['unanswered']}"
    elif "cluster" in found:
        there = ", ".join(found["there"]) or "none"
        yield f"no run named {found['run']!r} in the cluster at {found['cluster']}; there are {there}"
    else:
        yield "no cluster was asked"


# -- list -----------------------------------------------------------------------------------------------------------


def show_list(folder: str, address: str | None, *, as_json: bool) -> None:
    """Print the runs in a folder, and those in the cluster at `address` if one is given.

    Raises a PcpoError for what is no folder of runs, and for an address that does not answer, after the runs in the
    folder.
    """
    _check_holds_runs(folder)
    unanswered = None
    try:
        rows = looks(folder, address)
    except ClusterError as error:
        rows, unanswered = look.looks(folder), error
    if as_json:
        print(text(rows))
    elif not rows:
        wrapped.say(Console(file=sys.stdout), f"no runs in {folder}; {look.BEGIN}")
    else:
        _print_table(rows)
    if address is None and cluster_here():
        note = "note: you run a Ray cluster on this machine; --address auto lists its runs too"
        wrapped.say(Console(stderr=True), note)
    if unanswered is not None:
        raise unanswered


def _check_holds_runs(folder: str) -> None:
    """Refuse what can hold no runs, where an empty list would say that there are none. Raises RunError."""
    path = Path(folder).expanduser()
    look.check_whole(folder)
    if is_url(folder):
        raise RunError(
            f"got {shown(folder)}, and only folders are listed; a run in storage is shown by its own URL: "
            f"pcpo-ray status {shown(folder).rstrip('/')}/NAME"
        )
    if look.is_run(path):
        raise RunError(f"{folder} is a run, and no folder of runs; it is shown by: pcpo-ray status {folder}")
    if folder != look.RUNS and not path.is_dir():
        raise RunError(f"there is no folder {folder}; expected one that holds run folders, such as {look.RUNS}")


def looks(folder: str, address: str | None) -> list[dict[str, Any]]:
    """Return how each run is, the one heard of last first. Raises a PcpoError for an address that does not answer."""
    here = look.looks(folder)
    there = _in_cluster(address)
    places = {(row["run"], str(Path(row["place"]).absolute())) for row in here}
    new = [row for row in there if (row["run"], row["place"]) not in places]
    return sorted((*here, *new), key=lambda row: float(row["age"]))


def _in_cluster(address: str | None) -> list[dict[str, Any]]:
    if address is None:
        return []
    from pcpo_ray.cluster.control import dashboard, jobs

    return dashboard.looks(jobs.Client(dashboard.url_of(address), answer=ANSWER))


def _print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    from pcpo_ray.commands.status_text import duration
    from pcpo_ray.runs.lines import shown as number

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("run", "state", "step", "reward", "change", "heard", "where"):
        table.add_column(name, overflow="fold" if name == "where" else "ellipsis", no_wrap=name != "where")
    for row in rows:
        steps = f"{row['step']}/{row['steps']}" if row.get("steps") else "-"
        place = row["place"] or f"job {row.get('job', '')}"
        reward, change = number(row.get("reward"), ".3f"), _changed(row.get("change"))
        values = (row["run"], row["state"], steps, reward, change, duration(row["age"]), place)
        table.add_row(*(Text(str(value)) for value in values))
    Console(file=sys.stdout).print(table)


def _changed(change: Mapping[str, float | None] | None) -> str:
    from pcpo_ray.commands.status_text import direction

    if change is None or (mean := change.get("mean")) is None:
        return "-"
    return f"{mean:+.2g} {direction(change) or ''}".rstrip()


def known_name(name: str, runs: str = look.RUNS) -> str:
    """Return the name under which the cluster knows the run that a user names by its folder or name.

    Raises RunError for what is a part of a run.
    """
    place = look.place_of(name, runs)
    try:
        found = look.look(place)
    except PcpoError:
        found = None
    return str(found["run"]) if found else look.name_of(name)
