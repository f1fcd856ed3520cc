"""New weights sent to all idle samplers at once, over a torch.distributed group that lives for one version.

A sampler that does not answer a ping in time is no member, and pulls the version when a task names it. So does every
member if one of them is lost on the way: that costs the deadline, not the run.
"""

import time
from collections.abc import Mapping
from typing import Any

import ray
from ray import exceptions

from pcpo_ray.cluster.failures import brief, cause_of

PING = 1.0
"""Seconds in which an idle sampler answers."""

DEADLINE, SLOWEST = 60.0, 250e6
"""Seconds, and bytes a second, in which a version may arrive. On a slower network samplers had better pull."""

GRACE = 10.0
"""Seconds more for the answers themselves."""


def seconds_for(size: int) -> float:
    """Return the seconds that a version of `size` bytes may take to arrive."""
    return DEADLINE + size / SLOWEST


def send(
    learner: Any, manifest: ray.ObjectRef, samplers: Mapping[str, Any], deadline: float
) -> tuple[list[str], list[str]]:
    """Send the newest snapshot of the learner's first rank; return the samplers that loaded it, and the failures.

    A sampler in which the weights do not fit or do not act says so again when it pulls them.
    """
    pings = {actor.ping.remote(): name for name, actor in samplers.items()}
    answered, _ = ray.wait(list(pings), num_returns=len(pings), timeout=PING) if pings else ([], [])
    members = [pings[reference] for reference in answered if _failure(reference) is None]
    if not members:
        return [], []
    address, size = learner.meet.remote("weights"), 1 + len(members)
    sending = learner.send.remote(address, size, deadline)
    calls = {
        samplers[name].receive.remote(address, place, size, deadline, [manifest]): name
        for place, name in enumerate(members, 1)
    }
    until = time.monotonic() + deadline + GRACE
    ray.wait([sending, *calls], num_returns=1 + len(calls), timeout=max(0.0, until - time.monotonic()))
    found = {name: _failure(reference) for reference, name in calls.items()}
    failed = [f"{name} did not receive new weights: {why}; it pulls them" for name, why in found.items() if why]
    return [name for name, why in found.items() if why is None], failed


def _failure(reference: ray.ObjectRef) -> str | None:
    """Say why there is no answer; None where there is one."""
    try:
        ray.get(reference, timeout=0)
    except exceptions.GetTimeoutError:
        return "no answer in time"
    except exceptions.RayError as error:
        return brief(cause_of(error))
    return None
