"""A run's status (status.py) as a person reads it."""

import time
from collections.abc import Iterator, Mapping
from typing import Any

from pcpo_ray.data.requests import ENDED
from pcpo_ray.runs.lines import shown

OLD = 30.0
"""Seconds after which a status is said to be old: the driver is busy with something long, or hangs."""


def lines(status: Mapping[str, Any]) -> list[str]:
    """The status, a line a subject."""
    return [f"{name:<11}{text}" for name, text in _subjects(status) if text]


def event(row: Mapping[str, Any]) -> str:
    """An event of the run, in a line."""
    details = ", ".join(f"{name} {value}" for name, value in row.items() if name not in ("time", "kind"))
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(row['time']))} {row['kind']}: {details}"


def duration(seconds: float) -> str:
    """Format seconds as 40 s, 12 min or 3.5 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _subjects(status: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    step, steps, seconds = status["step"], status["steps"], status.get("seconds")
    left = f", {seconds:.1f} s a step, {duration((steps - step) * seconds)} left" if seconds else ""
    yield "run", f"{status['run']}: {status['state']}, step {step} of {steps}{left}"
    yield "error", status.get("error", "")
    yield "reward", _reward(status)
    for role in ("samplers", "scorers"):
        size = status[role]
        versions = ", ".join(f"{name} {_version(version)}" for name, version in size.get("versions", {}).items())
        yield role, f"{size['wanted']} wanted, {size['ready']} ready" + (f"; weights: {versions}" if versions else "")
    yield "in flight", _in_flight(status)
    yield "restarts", _restarts(status)
    yield "idle", ", ".join(f"{role} {share:.0%}" for role, share in status.get("idle", {}).items())
    yield "waits for", status.get("waiting", "") if status["state"] not in ENDED else ""
    yield "checkpoint", status.get("checkpoint") or ""
    age = status.get("age", 0.0)
    busy = "; it is busy with something long, or hangs" if age > OLD else ""
    yield "heard", f"{duration(age)} ago{busy}"


def _version(version: int | None) -> str:
    return "none yet" if version is None else f"v{version}"


def _reward(status: Mapping[str, Any]) -> str:
    found = []
    if status.get("reward") is not None:
        found.append(f"{shown(status['reward'])} ± {shown(status['reward_std'], '.2g')}")
    if status.get("evaluated"):
        means = ", ".join(f"{name} {shown(mean)}" for name, mean in status["evaluated"].items() if name != "reward")
        found.append(f"evaluated at step {status['evaluated_step']}: {means}")
    return "; ".join(found)


def _in_flight(status: Mapping[str, Any]) -> str:
    if "in_flight" not in status:
        return ""
    ages = ", ".join(f"{count} of age {age}" for age, count in sorted(status["ages"].items()))
    learned = "" if status["sample_age"] is None else f"; the last step's were {status['sample_age']:.2g} versions old"
    begun = f"; begun: {ages} (max_staleness {status['max_staleness']})" if ages else ""
    return f"{status['in_flight']} groups{begun}{learned}"


def _restarts(status: Mapping[str, Any]) -> str:
    found = {role: status[role].get("losses", {}) for role in ("samplers", "scorers")}
    texts = [
        f"{role} {', '.join(f'{count} {cause}' for cause, count in losses.items())}"
        for role, losses in found.items()
        if losses
    ]
    if status.get("learners_lost"):
        texts.append(f"learner {status['learners_lost']}")
    return "; ".join(texts)
