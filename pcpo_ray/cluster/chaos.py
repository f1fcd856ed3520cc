"""Faults on purpose, for whoever wants to see a run survive them."""

import itertools
import time
from collections.abc import Callable, Sequence
from typing import get_args

import ray
from ray import exceptions

from pcpo_ray.cluster.controller import find
from pcpo_ray.errors import ClusterError
from pcpo_ray.stages import Fault, Request

ANSWER = 30.0
"""Seconds in which a run's controller must answer."""


def disturb(
    run: str, faults: Sequence[str], *, every: float, count: int | None, address: str, say: Callable[[str], None]
) -> None:
    """Ask a run for one fault after the other, `every` seconds, until it has ended or `count` were done.

    Raises ClusterError for a fault or a run that there is not.
    """
    for fault in faults:
        if fault not in get_args(Fault):
            raise ClusterError(f"no fault is named {fault!r}; expected one of {list(get_args(Fault))}")
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", ignore_reinit_error=True)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ClusterError(f"no Ray cluster at {address!r}: {error}; start a run, or give --address") from error
    controller = find(run)
    for number, fault in enumerate(itertools.cycle(faults), 1):
        try:
            ray.get(controller.ask.remote(Request(fault=fault)), timeout=ANSWER)  # type: ignore[arg-type]
            status = ray.get(controller.status.remote(), timeout=ANSWER)
        except exceptions.RayActorError:
            return say(f"{run} has ended, after {number - 1} faults")
        except exceptions.GetTimeoutError:
            raise ClusterError(f"the controller of {run} did not answer for {ANSWER:g} s") from None
        say(f"fault {number}, {fault}, at step {status.get('step')} of {status.get('steps')}")
        if number == count:
            return None
        time.sleep(every)
    return None
