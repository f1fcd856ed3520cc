"""Fault injection, to see a run survive it."""

import itertools
import time
from collections.abc import Callable, Sequence

from pcpo_ray.cluster.control.client import Caller
from pcpo_ray.data.requests import Fault, Request
from pcpo_ray.errors import EndedError


def inject_fault(
    run: str, faults: Sequence[Fault], *, every: float, count: int | None, address: str, say: Callable[[str], None]
) -> None:
    """Inject one fault after the other into a run, `every` seconds, until it has ended or `count` were injected.

    Raises ClusterError if there is no such run.
    """
    caller = Caller(run, address)
    for number, fault in enumerate(itertools.cycle(faults), 1):
        try:
            caller.ask(Request(fault=fault))
            status = caller.status()
        except EndedError:
            return say(f"{run} has ended, after {number - 1} faults")
        say(f"fault {number}, {fault}, at step {status.get('step')} of {status.get('steps')}")
        if number == count:
            return None
        time.sleep(every)
    return None
