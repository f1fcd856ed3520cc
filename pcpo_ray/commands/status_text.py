"""A run's status (status.py) as a person reads it."""

import math
import shlex
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from pcpo_ray.data.requests import ENDED
from pcpo_ray.runs.lines import counted, shown

INDENT = 11
"""Columns of a subject's name."""

OLD = 30.0
"""Seconds after which a status is said to be old: the driver is busy with something long, or hangs."""


COPIED = ("checkpoint", "folder", "next", "go on")
"""Subjects whose text is copied elsewhere, so that no line is broken in it."""


def lines(status: Mapping[str, Any], width: int | None = None) -> list[str]:
    """Write the status, a line a subject; what is wider than a terminal's `width` goes on below its beginning."""
    found = []
    for name, text in _subjects(status):
        whole = f"{name:<{INDENT}}{text}"
        if text and (width is None or name in COPIED):
            found.append(whole)
        elif text:
            found += textwrap.wrap(
                whole,
                max(width or 0, 2 * INDENT),
                subsequent_indent=" " * INDENT,
                break_long_words=False,
                break_on_hyphens=False,
            )
    return found


def duration(seconds: float) -> str:
    """Format seconds as 40 s, 12 min or 3.5 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _subjects(status: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    step, steps, seconds, state = status["step"], status["steps"], status.get("seconds"), status["state"]
    ended = state in ENDED or state == "lost"
    left = f", {seconds:.1f} s a step" if seconds else ""
    left += f", {duration((steps - step) * seconds)} left" if seconds and not ended else ""
    yield "run", f"{status['run']}: {state}, step {step} of {steps or '?'}{left}"
    yield "error", status.get("error", "")
    yield "reward", _reward(status)
    yield "change", _change(status.get("change"))
    for role in ("samplers", "scorers"):
        if not ended and role in status:
            yield role, _pool(status[role])
    yield "in flight", "" if ended else _in_flight(status)
    yield "restarts", _restarts(status)
    yield "idle", ", ".join(f"{role} {share:.0%}" for role, share in status.get("idle", {}).items())
    waiting = status.get("waiting", "")
    yield "waits for" if state == "starting" else "phase", waiting if not ended else ""
    yield "checkpoint", status.get("checkpoint") or ""
    yield "folder", status.get("place") or ""
    yield "job", status.get("job") or ""
    yield "heard", _heard(status, ended=ended)
    yield from _next(status)


def _heard(status: Mapping[str, Any], *, ended: bool) -> str:
    age = status.get("age", 0.0)
    if math.isnan(age):  # storage has no word of it yet
        return ""
    if status.get("stored"):
        return f"{duration(age)} ago, as storage has it: records go there with evaluations and checkpoints"
    lives = "its process lives and is busy" if status.get("alive") else "it is busy"
    busy = f"; {lives} with something long, or hangs" if age > OLD and not ended else ""
    return f"{duration(age)} ago{busy}"


def _next(status: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what to do with a run that has ended."""
    place, again = status.get("place"), status.get("again")
    if status["state"] == "finished" and place:
        yield "next", f"pcpo-ray evaluate {shlex.quote(place)}, or sample, or report"
    elif status["state"] in ("stopped", "failed", "lost") and again:
        yield "go on", again


def _pool(size: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {_version(version)}" for name, version in size.get("versions", {}).items())
    room = f" ({size['room']})" if size.get("room") and size["ready"] < size["wanted"] else ""
    lent = f", and {size['lent']} ranks of the learner" if size.get("lent") else ""
    return f"{size['wanted']} wanted, {size['ready']} ready{lent}{room}" + (
        f"; weights: {versions}" if versions else ""
    )


def _version(version: int | None) -> str:
    return "none yet" if version is None else f"v{version}"


def _reward(status: Mapping[str, Any]) -> str:
    found = []
    if status.get("reward") is not None:
        found.append(f"{shown(status['reward'])} ± {shown(status.get('reward_std'), '.2g')}")
    if status.get("evaluated"):
        means = ", ".join(f"{name} {shown(mean)}" for name, mean in status["evaluated"].items() if name != "reward")
        found.append(f"evaluated at step {status['evaluated_step']}: {means}")
    return "; ".join(found)


def _change(change: Mapping[str, float] | None) -> str:
    if change is None or change.get("mean") is None:
        return ""
    sign, low, high = direction(change), change.get("low"), change.get("high")
    if sign is None:
        return f"the evaluated reward moved by {change['mean']:+.3g} since the start; too few prompts for an interval"
    told = {"▲": "rose", "▼": "FELL", "◆": "did not clearly change"}[sign]
    return f"the evaluated reward {told} since the start: {change['mean']:+.3g} (95% {low:+.2g} to {high:+.2g})"


def direction(change: Mapping[str, float | None]) -> str | None:
    """Return ▲ for a change whose interval lies above 0, ▼ for one below, ◆ for one around it; None without one."""
    low, high = change.get("low"), change.get("high")
    if low is None or high is None:
        return None
    return "▲" if low > 0 else "▼" if high < 0 else "◆"


def _in_flight(status: Mapping[str, Any]) -> str:
    if "in_flight" not in status:
        return ""
    ages = ", ".join(f"{count} of age {age}" for age, count in sorted(status["ages"].items()))
    learned = "" if status["sample_age"] is None else f"; the last step's were {status['sample_age']:.2g} versions old"
    begun = f"; begun: {ages} (max_staleness {status['max_staleness']})" if ages else ""
    return f"{counted(status['in_flight'], 'group')}{begun}{learned}"


def _restarts(status: Mapping[str, Any]) -> str:
    found = {role: status.get(role, {}).get("losses", {}) for role in ("samplers", "scorers")}
    texts = [
        f"{role} {', '.join(f'{count} {cause}' for cause, count in losses.items())}"
        for role, losses in found.items()
        if losses
    ]
    if status.get("learners_lost"):
        texts.append(f"learner {status['learners_lost']}")
    return "; ".join(texts)
