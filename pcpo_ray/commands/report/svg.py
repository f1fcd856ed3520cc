"""Charts as inline SVG in the page's own colours, light and dark. The same numbers give the same bytes."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from markupsafe import Markup, escape

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
"""Width and height of a chart in CSS pixels, before scaling."""

EDGES = {"left": 0.18, "right": 0.98, "bottom": 0.17, "top": 0.87}
"""The edges of a chart's axes, as fractions of the chart."""

FEW = 2
"""Points up to which an interval is a bar at each: a band between two points would say what nobody measured."""

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
    """One line of a chart: n points, NaN for a gap, optionally with an interval around each.

    `bars` draws the intervals as bars, `shift` moves the whole curve to the right, so that bars do not hide each other.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    colour: Colour = "blue"
    thin: bool = False
    dashed: bool = False
    bars: bool = False
    shift: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Axes:
    """The axes of a chart.

    `ticks` are the labels under x = 0, 1, ... (None: x is a whole number, such as a step). `reference` is the height of
    a dotted line. `percent` shows y, a fraction, in per cent. `legend` names several curves in the chart. `span` are
    the ends of x (None: those of the data).
    """

    x: str
    y: str
    ticks: Sequence[str] | None = None
    reference: float | None = None
    from_zero: bool = False
    percent: bool = False
    legend: bool = True
    span: tuple[float, float] | None = None


def chart(name: str, description: str, curves: Sequence[Curve], axes: Axes) -> Markup:
    """Draw a chart as an <svg> element; `name` is unique on the page, `description` is for screen readers."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(SIZE[0] / 72, SIZE[1] / 72))
        figure.subplots_adjust(**EDGES)  # the same in all charts, so that axes beside each other are in line
        plot = figure.add_subplot()
        if axes.reference is not None:
            plot.axhline(axes.reference, color=PAINT["ink"], linewidth=1, linestyle=(0, (1, 2)))
        for curve in curves:
            _draw(plot, curve)
        _label(plot, axes)
        if axes.legend and len(curves) > 1:
            figure.legend(loc="upper left", ncols=len(curves), bbox_to_anchor=(0.0, 1.02))
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return _inline(file.getvalue(), name, description)


def _draw(plot: Any, curve: Curve) -> None:
    colour = PAINT[curve.colour]
    known = int(np.isfinite(curve.y).sum())  # a single point has no line
    bars = curve.bars or known <= FEW
    if curve.low is not None and curve.high is not None:
        if bars:
            x, low, high = (np.asarray(values, float) for values in (curve.x, curve.low, curve.high))
            shown = np.isfinite(low) & np.isfinite(high)
            plot.vlines(x[shown] + curve.shift, low[shown], high[shown], color=colour, linewidth=1.6)
        else:
            plot.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.2, linewidth=0)
    plot.plot(
        np.asarray(curve.x, float) + curve.shift,
        curve.y,
        color=colour,
        linewidth=1.2 if curve.thin else 2.2,
        linestyle=(0, (4, 1.5)) if curve.dashed else "-",
        marker="o" if known <= FEW or not curve.thin else "",
        markersize=4.5,
        markeredgewidth=0,
        zorder=2 if curve.thin else 3,
        label=curve.label,
    )


def _label(plot: Any, axes: Axes) -> None:
    from matplotlib import ticker

    plot.set_xlabel(axes.x)
    plot.set_ylabel(axes.y)
    if axes.from_zero and plot.dataLim.y1 > 0:
        plot.set_ylim(0, 1.08 * plot.dataLim.y1)
    if axes.span is not None:
        room = 0.03 * (axes.span[1] - axes.span[0])
        plot.set_xlim(axes.span[0] - room, axes.span[1] + room)
    plain = ticker.ScalarFormatter(useOffset=False)
    plain.set_powerlimits((-3, 5))  # longer labels would not leave the axis' own name any room
    plot.yaxis.set_major_formatter((lambda fraction, _: f"{100 * fraction:.3g}%") if axes.percent else plain)
    plot.yaxis.set_major_locator(ticker.MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    if axes.ticks is None:
        plot.xaxis.set_major_locator(ticker.MaxNLocator(7, integer=True))
    else:
        shown = np.unique(np.linspace(0, len(axes.ticks) - 1, min(7, len(axes.ticks))).round().astype(int))
        plot.set_xticks(shown, [axes.ticks[n] for n in shown])


def _inline(svg: str, name: str, description: str) -> Markup:
    """Turn matplotlib's SVG file into an element of a page: no prolog, size or font, and the page's colours."""
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
