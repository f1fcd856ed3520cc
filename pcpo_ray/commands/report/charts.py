"""The charts of a run: rewards, diagnostics by step and by timestep."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from pcpo_ray.commands.report.svg import Axes, Colour, Curve, chart
from pcpo_ray.runs.intervals import Estimate


def reward(
    name: str,
    title: str,
    unit: str,
    evaluated: Mapping[int, Estimate],
    training: Mapping[int, float] | None = None,
    *,
    prompts: str,
    until: int,
) -> Markup | None:
    """Chart an evaluated reward with its 95% interval, and the training batches' reward, by step.

    `prompts` says which prompts are evaluated, `until` is the run's last step. Returns None if fewer than two
    evaluations have scores.
    """
    held_out = _estimates(f"{prompts}, 95% interval", evaluated)
    if np.isfinite(held_out.y).sum() < 2:
        return None
    batches = training or {}
    thin = Curve(label="training batches", x=list(batches), y=list(batches.values()), colour="orange", thin=True)
    description = f"{title} against steps, with 95% intervals: {_ends(held_out)}"
    return chart(name, description, [held_out, thin] if batches else [held_out], _steps(until, y=unit))


def change(name: str, title: str, unit: str, changed: Mapping[int, Estimate], *, until: int) -> Markup:
    """Chart the change of an evaluated reward since the first evaluation, with 95% intervals."""
    curve = _estimates("change", changed)
    description = f"Change of {title} since the first evaluation, with 95% intervals: {_ends(curve)}"
    return chart(name, description, [curve], _steps(until, y=f"change, {unit}", reference=0))


def history(
    name: str,
    title: str,
    unit: str,
    steps: Sequence[Mapping[str, Any]],
    *,
    until: int,
    percent: bool = False,
    from_zero: bool = True,
) -> Markup | None:
    """Chart a recorded value over the training steps; None if no step has it."""
    values = _numbers([row.get(name) for row in steps])
    if not np.isfinite(values).any():
        return None
    curve = Curve(label=title, x=[row["step"] for row in steps], y=values, thin=True)
    axes = _steps(until, y=unit, percent=percent, from_zero=from_zero)
    return chart(f"{name.replace('_', '-')}-history", f"{title} against steps: {_ends(curve)}", [curve], axes)


def _steps(until: int, **rest: Any) -> Axes:
    """Return axes over the whole run's steps, the same for every chart by step."""
    return Axes(x="step", span=(0, until), **rest)


def weights(per_timestep: Mapping[str, Sequence[Any]]) -> Markup:
    """Chart the credit weights used in the loss beside the sampler's native ones, by timestep."""
    where = range(len(per_timestep["timestep"]))
    native, used = per_timestep["native_weight"], per_timestep["credit_weight"]
    curves = [Curve(label="used in the loss", x=where, y=used)]
    if list(native) != list(used):
        curves.append(Curve(label="the sampler's own", x=where, y=native, colour="orange"))
    low, high = min(native), max(native)
    description = f"Credit weight by timestep; the sampler's own go from {low:.3g} to {high:.3g}"
    return chart("weights", description, curves, _timesteps(per_timestep, y="weight w"))


def by_timestep(
    name: str, title: str, unit: str, steps: Sequence[Mapping[str, Any]], *, percent: bool, even: bool = False
) -> Markup | None:
    """Chart a diagnostic's mean over the run, its first third and its last third, by timestep.

    `even` marks the height at which all timesteps would be equal. Returns None if all values are 0.
    """
    third = len(steps) // 3
    parts: list[tuple[str, Sequence[Mapping[str, Any]], Colour]] = [("whole run", steps, "blue")]
    if third >= 2:
        parts += [("first third", steps[:third], "orange"), ("last third", steps[-third:], "grey")]
    means = [(label, mean_by_timestep(rows, name), colour) for label, rows, colour in parts]
    if not np.nansum(np.abs(means[0][1])):
        return None
    table = steps[-1]["per_timestep"]
    where = range(len(table["timestep"]))
    curves = [
        Curve(label=label, x=where, y=values, colour=colour, thin=colour != "blue") for label, values, colour in means
    ]
    reference = 1 / len(where) if even else None
    description = f"{title} by timestep, noisiest first: {_ends(curves[0])}"
    return chart(name, description, curves, _timesteps(table, y=unit, percent=percent, reference=reference))


def _timesteps(table: Mapping[str, Sequence[Any]], **rest: Any) -> Axes:
    ticks = [f"{timestep:.0f}" for timestep in table["timestep"]]
    return Axes(x="timestep, from noise to image", ticks=ticks, from_zero=True, **rest)


def mean_by_timestep(steps: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """Average a column of per_timestep over updates; NaN where no update has it."""
    rows = np.array([_numbers(row["per_timestep"][name]) for row in steps])
    if name == "ratio_std":  # recorded about the ratio's mean; the chart shows the distance from 1
        means = np.array([_numbers(row["per_timestep"]["ratio_mean"]) for row in steps])
        rows = np.hypot(rows, means - 1)
    seen = np.isfinite(rows).sum(0)
    summed = np.nansum(rows, axis=0)
    return [float(total) / count if count else float("nan") for total, count in zip(summed, seen.tolist(), strict=True)]


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else float(value) for value in values]


def _estimates(label: str, values: Mapping[int, Estimate]) -> Curve:
    found = values.values()
    return Curve(
        label=label,
        x=list(values),
        y=[value.mean for value in found],
        low=[value.low for value in found],
        high=[value.high for value in found],
    )


def _ends(curve: Curve) -> str:
    known = [value for value in curve.y if np.isfinite(value)]
    return f"from {known[0]:.3g} to {known[-1]:.3g}" if known else "no values"
