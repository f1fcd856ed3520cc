"""A plan as plain data, for `pcpo-ray plan --json`. Sizes are bytes, times seconds."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from pcpo_ray.commands.plan import Fit, Plan
from pcpo_ray.commands.plan.layouts import Layout
from pcpo_ray.commands.plan.pace import Forecast, Pace
from pcpo_ray.commands.plan.roles import Memory, Store
from pcpo_ray.commands.plan.switches import Overrides
from pcpo_ray.runs import lines


def text(
    planned: Plan,
    verdicts: Sequence[Fit],
    together: tuple[Overrides, Sequence[Fit]] | None,
    pace: Pace | None,
    forecast: Forecast | None,
    layouts: Sequence[Layout],
    notes: Sequence[str],
) -> str:
    """Return all that `plan` shows as one JSON object; `notes` tell which models are planned by published sizes."""
    found: dict[str, Any] = {
        "run": planned.run.name,
        "notes": list(notes),
        "roles": [_memory(role) for role in planned.roles],
        "store": _store(planned.store),
        "main_memory": planned.main_memory,
        "fits": [_fit(verdict) for verdict in verdicts],
    }
    if together is not None:
        overrides, fits = together
        found["together"] = {"overrides": list(overrides), "fits": [_fit(verdict) for verdict in fits]}
    if pace is not None and forecast is not None:
        found["pace"] = {**dataclasses.asdict(pace), "forecast": dataclasses.asdict(forecast)}
        found["layouts"] = [{**dataclasses.asdict(one), "processes": one.processes} for one in layouts]
    found["uneven_shares"] = list(planned.uneven)
    return lines.text(found)


def _memory(role: Memory) -> dict[str, Any]:
    return {**dataclasses.asdict(role), "total": role.total, "busiest": role.busiest}


def _store(store: Store) -> dict[str, Any]:
    return {**dataclasses.asdict(store), "total": store.total, "needed": store.needed}


def _fit(verdict: Fit) -> dict[str, Any]:
    remedies = [{"overrides": list(remedy.overrides), "needed": remedy.needed} for remedy in verdict.remedies]
    return {
        "what": verdict.what,
        "needed": verdict.needed,
        "room": verdict.room,
        "fits": verdict.fits,
        "remedies": remedies,
    }
