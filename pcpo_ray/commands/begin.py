"""The beginning of a run: what can be told at once, before torch, diffusers and Ray are loaded.

A config or a folder that is wrong is an error within two seconds, and the display shows its first sign within three.
"""

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer
from rich.console import Console

from pcpo_ray.commands import early, resuming
from pcpo_ray.commands.log import checked_level
from pcpo_ray.commands.progress import Display
from pcpo_ray.config import Run, files, paths
from pcpo_ray.errors import AlarmError, PcpoError, StopAskedError
from pcpo_ray.process import terminal
from pcpo_ray.process.ray_address import OWN, ray_address
from pcpo_ray.process.signals import ended
from pcpo_ray.runs import look

if TYPE_CHECKING:
    from pcpo_ray.commands.results import RunResult
    from pcpo_ray.training.callbacks import Callback

AGAIN = "PCPO_RAY_AGAIN"
"""The environment variable in which `submit` tells its job the command that continues the run."""

Resume = bool | Literal["if_started"]
"""The answer to whether a run is to continue; "if_started" starts it where there is none."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """A run to train, and where; `run` has absolute paths, `continuing` is what continues it, as it is typed."""

    run: Run
    continuing: str
    local: bool = False
    resume: Resume = False
    runs: str = look.RUNS
    metrics_port: int | None = None
    callbacks: "Sequence[Callback]" = ()


def train(order: Order, display: Display) -> "RunResult":
    """Check an order, show the first sign of life, then load what trains, and train. Raises a PcpoError.

    A run that its monitors ended is returned as any other; its `alarm` says why.
    """
    if order.resume != "if_started":
        look.check_start(order.runs, order.run.name, resume=order.resume)
    if order.resume:
        resuming.check_config(order.run, order.runs, otherwise="start under another name")
    early.check(order.run)
    with ended(display.say) as signals, display:
        if not order.local:
            _check_cluster(display)
        display.phase("loading torch and diffusers")
        from pcpo_ray.commands.train import train as trained

        return trained(order, display, signals)


def _check_cluster(display: Display) -> None:
    """Check that the cluster which RAY_ADDRESS names answers. Raises ClusterError."""
    address = ray_address()
    if address == OWN:
        return
    display.phase("looking for the cluster")
    from pcpo_ray.cluster.control import attach

    attach.check(address)


def command(
    config: Path,
    overrides: Sequence[str],
    *,
    local: bool,
    resume: Resume,
    runs: str,
    metrics_port: int | None,
    log_level: str,
    log_json: bool,
) -> None:
    """Train as the command line asks; says the verdict and what to do next. Raises a PcpoError.

    That is an AlarmError for a run that its monitors ended. An error that the log has told where errors go is a
    typer.Exit.
    """
    level = checked_level(log_level)
    order = Order(
        run=paths.absolute(files.load(config, overrides)),
        continuing=continuing(config, overrides, local=local, runs=runs),
        local=local,
        resume=resume,
        runs=runs,
        metrics_port=metrics_port,
    )
    display = Display(order.run, Console(file=sys.stdout), level=level, as_json=log_json, runs=runs, local=local)
    try:
        found = train(order, display)
    except StopAskedError:  # the log has said so
        return
    except PcpoError as error:
        if display.told and terminal.joined():  # once is enough
            raise typer.Exit(1) from error
        raise
    from pcpo_ray.commands import next_steps

    judged, steps = found.verdict, next_steps.after(found, order.continuing)
    for line in (judged.text, *judged.notes, f"report: {found.report}", *steps):
        display.say(line, "info")
    if found.alarm:
        raise AlarmError(found.alarm)


def continuing(config: Path, overrides: Sequence[str], *, local: bool, runs: str) -> str:
    """Return the command that continues a run that was started with these words."""
    if again := os.environ.get(AGAIN):
        return again
    options = [*(["--local"] if local else []), *([] if runs == look.RUNS else ["--runs", runs])]
    return shlex.join(["pcpo-ray", "train", str(config), *overrides, *options, "--resume"])
