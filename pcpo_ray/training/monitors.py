"""Monitors: do the evaluations show a run that collapses, or one that hacks its reward?

    diversity   images of one prompt have become alike
    deviation   so have the rewards of a group: there is nothing left to learn
    reward      the trained reward itself is worse than at first
    hacking     it rose, and a reward that is only watched became worse

Each is a condition on one evaluation against the first; it is an alarm once it holds at `monitors.patience` evaluations
in a row. All is a function of the lines of metrics.jsonl, so a resumed run judges as an uninterrupted one. A reward
without scores raises no alarm. Neither does an evaluation of fewer prompts than an interval needs (config.FEWEST): it
says nothing of other prompts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pcpo_ray import config
from pcpo_ray.config import FEWEST, TOTAL
from pcpo_ray.runs import lines

Row = Mapping[str, Any]
"""A line of metrics.jsonl."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The newest evaluation's alarms, each with its reason; the newest step evaluated at which no condition held."""

    alarms: Mapping[str, str]
    healthy: int


def judge(run: config.Run, rows: Sequence[Row]) -> Verdict:
    """Judge the last evaluation among a run's lines so far."""
    evaluated = [row for row in rows if row["kind"] == "evaluation"]
    steps = [row for row in rows if row["kind"] == "train"]
    held = [conditions(run, evaluated[: n + 1], steps) for n in range(len(evaluated))]
    recent = held[-run.monitors.patience :]
    raised = {
        name: text
        for name, text in (held[-1] if held else {}).items()
        if len(recent) == run.monitors.patience and all(name in found for found in recent)
    }
    healthy = [row["step"] for row, found in zip(evaluated, held, strict=True) if not found]
    return Verdict(alarms=raised, healthy=max(healthy, default=0))


def conditions(run: config.Run, evaluated: Sequence[Row], steps: Sequence[Row]) -> dict[str, str]:
    """Describe the conditions that hold at the last of these evaluations, by monitor, each with its numbers."""
    if len(evaluated) < 2:
        return {}
    found = {
        "diversity": _diversity(run, evaluated),
        "deviation": _deviation(run.monitors, evaluated, steps),
        "reward": _reward(run, evaluated[-1]),
        "hacking": _hacking(run, evaluated[-1]),
    }
    return {name: text for name, text in found.items() if text}


def watched(run: config.Run) -> dict[str, bool]:
    """Name the untrained rewards that can become worse, and whether more is worse: no file size, and no diversity."""
    trained = {reward.name for reward in run.rewards}
    worse = {one.name: "less" if isinstance(one, config.CustomReward) else one.worse for one in run.evaluation.rewards}
    return {name: way == "more" for name, way in worse.items() if way != "neither" and name not in trained}


def _diversity(run: config.Run, evaluated: Sequence[Row]) -> str:
    settings = run.monitors
    first, now = (_spread(row) for row in (evaluated[0], evaluated[-1]))
    if evaluated[-1].get("prompts", 0) < FEWEST or not now < settings.diversity * first:
        return ""
    return (
        f"{run.of_evaluation('diversity')} inside a prompt is {now:.4g}, {now / first:.0%} of what it was at "
        f"first ({first:.4g}; monitors.diversity {settings.diversity:.0%})"
    )


def _spread(row: Row) -> float:
    """Return the mean distance between a prompt's images, from quality or the reward; NaN if neither is known."""
    found = row.get("quality", {}).get("pairwise")
    if found is None and "diversity" in row["rewards"]:
        found = row["rewards"]["diversity"]["mean"]
    return float("nan") if found is None else float(found)


def _deviation(settings: config.Monitors, evaluated: Sequence[Row], steps: Sequence[Row]) -> str:
    def between(start: int, end: int) -> float:
        known = [row["group_deviation"] for row in steps if start < row["step"] <= end]
        known = [value for value in known if value is not None and np.isfinite(value)]
        return float(np.mean(known)) if known else float("nan")

    first = between(evaluated[0]["step"], evaluated[1]["step"])
    now = between(evaluated[-2]["step"], evaluated[-1]["step"])
    if not now < settings.deviation * first:
        return ""
    return (
        f"rewards within a group deviate by {now:.4g}, {now / first:.0%} of what they did at first ({first:.4g}; "
        f"monitors.deviation {settings.deviation:.0%})"
    )


def _reward(run: config.Run, row: Row) -> str:
    fallen = row["changes"][TOTAL]
    return f"the {run.of_evaluation('reward')} fell: {_said(fallen)}" if _fell(run.monitors, fallen) else ""


def _hacking(run: config.Run, row: Row) -> str:
    changes = row["changes"]
    if not _bound(changes[TOTAL], "low") > 0:
        return ""
    worse = [
        f"{name} {'rose' if more else 'fell'}: {_said(changes[name])}"
        for name, more in watched(run).items()
        if name in changes and (_rose if more else _fell)(run.monitors, changes[name])
    ]
    if not worse:
        return ""
    return f"the {run.of_evaluation('reward')} rose ({changes[TOTAL]['mean']:+.4g}) while {', '.join(worse)}"


def _fell(settings: config.Monitors, change: Mapping[str, Any]) -> bool:
    return _bound(change, "high") < 0 and change["deviations"] <= -settings.fall


def _rose(settings: config.Monitors, change: Mapping[str, Any]) -> bool:
    return _bound(change, "low") > 0 and change["deviations"] >= settings.fall


def _bound(change: Mapping[str, Any], name: str) -> float:
    """Return one end of a change's interval; without one NaN, which is neither above 0 nor below."""
    return float("nan") if change[name] is None else float(change[name])


def _said(change: Mapping[str, float]) -> str:
    return (
        f"{change['mean']:+.4g}, 95% interval {change['low']:+.4g} to {change['high']:+.4g}, "
        f"{abs(change['deviations']):.1f} standard deviations of its scores"
    )


# -- how a run ends by one ---------------------------------------------------------------------------------------------

ENDINGS = ("stopped", "rolled_back")
"""The kinds of events with which monitors end a run; they hold the `alarm`."""


def ending(folder: Path) -> str:
    """Return the alarm that ended the run in a folder last, and what to do; empty if it did not end by one."""
    found = [event for event in lines.events(folder / "events.jsonl").rows if event["kind"] in (*ENDINGS, "started")]
    return str(found[-1].get("alarm", "")) if found else ""


def advice(action: str, step: int, back: int | None) -> str:
    """Advise a user whose run has ended at a step, or was rolled `back` to an earlier one."""
    onward = "to go on regardless: monitors.action=warn --resume"
    if action == "stop":
        return f"the run has stopped after step {step}, with a checkpoint; {onward}"
    if back is None:
        return f"the run has stopped after step {step}: there is no checkpoint from before the trouble; {onward}"
    return (
        f"the run has ended at the checkpoint of step {back}, later ones are in its folder's set-aside/; as the same "
        "config would take the same steps again, begin another run there (model.train.start) with a lower "
        f"optimizer.learning_rate or an objective.kl; {onward}"
    )
