"""The charts of a run: rewards, diagnostics by step and by timestep."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
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
    """Chart an evaluated reward with its 95% interval, where it has one, and the training batches' reward, by step.

    `prompts` says which prompts are evaluated, `until` is the run's last step. Returns None if fewer than two
    evaluations have scores.
    """
    interval = ", 95% interval" if any(one.bounded for one in evaluated.values()) else ""
    held_out = _estimates(f"{prompts}{interval}", evaluated)
    if np.isfinite(held_out.y).sum() < 2:
        return None
    batches = training or {}
    thin = Curve(label="training batches", x=list(batches), y=list(batches.values()), colour="orange", thin=True)
    description = f"{title} against steps{interval}: {_ends(held_out)}"
    return chart(name, description, [held_out, thin] if batches else [held_out], _steps(until, y=unit))


def change(name: str, title: str, unit: str, changed: Mapping[int, Estimate], *, until: int) -> Markup:
    """Chart the change of an evaluated reward since the first evaluation, with 95% intervals."""
    curve = _estimates("change", changed)
    description = f"Change of {title} since the first evaluation, with 95% intervals: {_ends(curve)}"
    return chart(name, description, [curve], _steps(until, y=f"change, {unit}", reference=0))


def beside(
    name: str,
    title: str,
    unit: str,
    evaluated: Mapping[int, Estimate],
    bands: Sequence[tuple[str, Mapping[int, Estimate]]],
    *,
    until: int,
) -> Markup:
    """Chart an evaluated reward over the bands of other seeds, the recipe's and its baseline's.

    The run has no interval of its own here: that one is about other prompts. `until` is the last step of all.
    """
    colours: tuple[Colour, ...] = ("grey", "orange")
    behind = [
        replace(_estimates(label, band), colour=colour, thin=True, dashed=True)
        for (label, band), colour in zip(bands, colours, strict=False)
    ]
    run = replace(_estimates("this run", evaluated), low=None, high=None)
    description = f"{title} of this run against steps, over the bands of other seeds: {_ends(run)}"
    return chart(name, description, [run, *behind], _steps(until, y=unit))


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
    """Chart the weights inside the clip and their products with the factors outside it, beside the native ones."""
    where = range(len(per_timestep["timestep"]))
    native, inside = per_timestep["native_weight"], per_timestep["credit_weight"]
    factors = _outside(per_timestep)
    curves = [Curve(label="inside the clip", x=where, y=inside)]
    if factors is not None:
        product = [weight * factor for weight, factor in zip(inside, factors, strict=True)]
        curves.append(Curve(label="product", x=where, y=product, colour="grey"))
    if list(native) != list(inside):
        curves.append(Curve(label="the sampler's own", x=where, y=native, colour="orange"))
    low, high = min(native), max(native)
    description = f"Credit weight by timestep; the sampler's own go from {low:.3g} to {high:.3g}"
    return chart("weights", description, curves, _timesteps(per_timestep, y="weight w"))


def factors(per_timestep: Mapping[str, Sequence[Any]]) -> Markup | None:
    """Chart the factors of each timestep's loss, outside the clip; None if all are 1."""
    found = _outside(per_timestep)
    if found is None:
        return None
    curve = Curve(label="outside the clip", x=range(len(found)), y=found, colour="grey")
    description = f"Factor of the loss by timestep, noisiest first: {_ends(curve)}"
    return chart("factors", description, [curve], _timesteps(per_timestep, y="factor", reference=1))


def _outside(per_timestep: Mapping[str, Sequence[Any]]) -> Sequence[float] | None:
    """Return the factors outside the clip; None if all are 1, as in runs from before they were recorded."""
    found = per_timestep.get("outside_weight", ())
    return None if all(factor == 1 for factor in found) else found


def ratio_means(steps: Sequence[Mapping[str, Any]]) -> Markup | None:
    """Chart how far the ratio's mean is from 1, with and without the log-ratio's quadratic term, by timestep.

    Returns None if it is 1 everywhere, or the run is from before the second was recorded.
    """
    table = steps[-1]["per_timestep"]
    recorded = [row for row in steps if "centred_ratio_mean" in row["per_timestep"]]
    if not recorded:
        return None
    where = range(len(table["timestep"]))
    means: dict[str, tuple[str, Colour]] = {
        "ratio_mean": ("as trained on", "blue"),
        "centred_ratio_mean": ("without the quadratic term", "orange"),
    }
    curves = [
        Curve(label=label, x=where, y=[mean - 1 for mean in mean_by_timestep(recorded, name)], colour=colour)
        for name, (label, colour) in means.items()
    ]
    if not any(np.nansum(np.abs(curve.y)) for curve in curves):
        return None
    description = f"Mean of the ratio less 1 by timestep, noisiest first: {_ends(curves[0])}"
    return chart("ratio-mean", description, curves, _timesteps(table, y="mean ratio - 1", reference=0, from_zero=False))


def mismatch(steps: Sequence[Mapping[str, Any]]) -> Markup | None:
    """Chart the mismatch of sampler and learner by timestep; None if no step measured one, or it is 0 everywhere."""
    measured = [row for row in steps if "mismatch" in row["per_timestep"]]
    unit = "rms log-ratio"
    return by_timestep("mismatch", "Mismatch", unit, measured, percent=False) if measured else None


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
    return Axes(x="timestep, from noise to image", ticks=ticks, **{"from_zero": True, **rest})


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
