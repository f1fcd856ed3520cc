"""Charts as inline SVG: their colours are the page's, light and dark; the same numbers give the same bytes."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from markupsafe import Markup, escape

from pcpo_ray.runs.intervals import Estimate

Colour = Literal["blue", "orange", "grey", "green", "purple", "amber", "sky", "brown"]

# mostly Okabe and Ito's, which colour-blind readers tell apart; the page has a variable for each name it uses
PAINT = {
    "blue": "#0072b2",
    "orange": "#d55e00",
    "grey": "#8a8b8c",
    "green": "#009e73",
    "purple": "#cc79a7",
    "amber": "#e69f00",
    "sky": "#56b4e9",
    "brown": "#7a5230",
    "ink": "#101112",
    "rule": "#d1d2d3",
}
SIZE = (440, 264)
"""Width and height of a chart, in CSS pixels where it is not scaled."""

STYLE = {
    "font.family": "sans-serif",
    "font.size": 12.5,
    "svg.fonttype": "none",
    "axes.edgecolor": PAINT["rule"],
    "axes.labelcolor": PAINT["ink"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": PAINT["rule"],
    "grid.linewidth": 0.7,
    "xtick.color": PAINT["rule"],
    "ytick.color": PAINT["rule"],
    "xtick.labelcolor": PAINT["ink"],
    "ytick.labelcolor": PAINT["ink"],
    "text.color": PAINT["ink"],
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "legend.columnspacing": 1.4,
    "legend.borderpad": 0.1,
}


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a chart: n points, NaN where there is none, perhaps with an interval around each."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    colour: Colour = "blue"
    thin: bool = False
    dashed: bool = False


@dataclass(frozen=True, kw_only=True)
class Axes:
    """What a chart's axes say.

    `ticks`: the words under x = 0, 1, ... (None: x is a whole number, such as a step). `reference`: a height to draw a
    line at. `from_zero`: y starts at 0. `percent`: y is a share. `legend`: several curves are named in the chart.
    """

    x: str
    y: str
    ticks: Sequence[str] | None = None
    reference: float | None = None
    from_zero: bool = False
    percent: bool = False
    legend: bool = True


def chart(name: str, description: str, curves: Sequence[Curve], axes: Axes) -> Markup:
    """The chart as an <svg> element; `name` is unique on the page, `description` is read to who cannot see it."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(SIZE[0] / 72, SIZE[1] / 72), layout="constrained")
        plot = figure.add_subplot()
        if axes.reference is not None:
            plot.axhline(axes.reference, color=PAINT["ink"], linewidth=1, linestyle=(0, (1, 2)))
        for curve in curves:
            _draw(plot, curve)
        _label(plot, axes)
        if axes.legend and len(curves) > 1:
            figure.legend(loc="outside upper left", ncols=len(curves))
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return _inline(file.getvalue(), name, description)


def _draw(plot: Any, curve: Curve) -> None:
    colour = PAINT[curve.colour]
    if curve.low is not None and curve.high is not None:
        plot.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.2, linewidth=0)
    alone = np.isfinite(curve.y).sum() == 1  # a single point has no line
    plot.plot(
        curve.x,
        curve.y,
        color=colour,
        linewidth=1.2 if curve.thin else 2.2,
        linestyle=(0, (4, 1.5)) if curve.dashed else "-",
        marker="o" if alone or not curve.thin else "",
        markersize=4.5,
        markeredgewidth=0,
        zorder=2 if curve.thin else 3,
        label=curve.label,
    )


def _label(plot: Any, axes: Axes) -> None:
    from matplotlib import ticker

    plot.set_xlabel(axes.x)
    plot.set_ylabel(axes.y)
    if axes.from_zero:
        plot.set_ylim(0, 1.08 * plot.dataLim.y1)
    plain = ticker.ScalarFormatter(useOffset=False)
    plain.set_scientific(False)
    plot.yaxis.set_major_formatter((lambda share, _: f"{100 * share:.3g}%") if axes.percent else plain)
    plot.yaxis.set_major_locator(ticker.MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    if axes.ticks is None:
        plot.xaxis.set_major_locator(ticker.MaxNLocator(7, integer=True))
    else:
        shown = np.unique(np.linspace(0, len(axes.ticks) - 1, min(7, len(axes.ticks))).round().astype(int))
        plot.set_xticks(shown, [axes.ticks[n] for n in shown])


def _inline(svg: str, name: str, description: str) -> Markup:
    """matplotlib's SVG file as an element of a page: no prolog, no size or font of its own, the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
    view = re.search(r'viewBox="[^"]*"', svg)
    assert view is not None  # matplotlib always writes one
    svg = f'<svg {view[0]} role="img" aria-label="{escape(description)}"' + svg[svg.index(">") :]
    svg = re.sub(r" font-family: [^;]*;", "", svg)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    for colour, value in PAINT.items():
        svg = svg.replace(value, f"var(--{colour})")
    return Markup(svg)


# -- a run's charts ----------------------------------------------------------------------------------------------------


def reward(
    name: str,
    title: str,
    unit: str,
    evaluated: Mapping[int, Estimate],
    training: Mapping[int, float] | None = None,
    *,
    prompts: str,
) -> Markup | None:
    """An evaluated reward's mean by step with its 95% interval, and the training batches' by the step they came from.

    `prompts` names those of evaluations. None where fewer than two evaluations have scores.
    """
    held_out = _estimates(f"{prompts}, 95% interval", evaluated)
    if np.isfinite(held_out.y).sum() < 2:
        return None
    batches = training or {}
    thin = Curve(label="training batches", x=list(batches), y=list(batches.values()), colour="orange", thin=True)
    description = f"{title} against steps, with 95% intervals: {_ends(held_out)}"
    return chart(name, description, [held_out, thin] if batches else [held_out], Axes(x="step", y=unit))


def change(name: str, title: str, unit: str, changed: Mapping[int, Estimate]) -> Markup:
    """How much an evaluated reward differs from the first evaluation's, by step, with 95% intervals."""
    curve = _estimates("change", changed)
    description = f"Change of {title} since the first evaluation, with 95% intervals: {_ends(curve)}"
    return chart(name, description, [curve], Axes(x="step", y=f"change, {unit}", reference=0))


def history(name: str, title: str, unit: str, steps: Sequence[Mapping[str, Any]], *, percent: bool = False) -> Markup:
    """What was recorded as `name` at every update."""
    curve = Curve(label=title, x=[row["step"] for row in steps], y=_numbers([row[name] for row in steps]), thin=True)
    axes = Axes(x="step", y=unit, percent=percent, from_zero=True)
    return chart(f"{name}-history", f"{title} against steps: {_ends(curve)}", [curve], axes)


def weights(per_timestep: Mapping[str, Sequence[Any]]) -> Markup:
    """The weights that the loss used beside the sampler's own, by timestep."""
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
    """A diagnostic's mean over the run by timestep, and over its first and last third; None where all of it is 0.

    `even` adds the height at which all timesteps would have the same share.
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
    return Axes(x="timestep, from noise to picture", ticks=ticks, from_zero=True, **rest)


def mean_by_timestep(steps: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """A column of per_timestep, averaged over updates; NaN where no update has it."""
    rows = np.array([_numbers(row["per_timestep"][name]) for row in steps])
    if name == "ratio_std":  # about the ratio's mean; wanted is the distance from 1
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
