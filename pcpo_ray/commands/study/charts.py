"""A study's charts: a curve an arm, in the same colour throughout; the page names them once."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import get_args

import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from pcpo_ray.commands.report.svg import Axes, Colour, Curve, chart
from pcpo_ray.commands.study import plan, statistics
from pcpo_ray.commands.study.results import ArmRuns, StudyResults

COLOURS: tuple[Colour, ...] = get_args(Colour)

Look = tuple[Colour, bool]
"""An arm's colour, and whether its line is dashed: the second round of the colours."""


def looks(results: StudyResults) -> dict[str, Look]:
    """Return the colour and style of each arm, by its name."""
    return {name: (COLOURS[place % len(COLOURS)], place >= len(COLOURS)) for place, name in enumerate(results.arms)}


def reward(results: StudyResults, name: str, axis: str, where: Callable[[ArmRuns], Sequence[float]]) -> Markup:
    """The evaluated reward against what `where` says of each evaluation, with one standard error at the end."""
    curves = [_curve(results, arm, where(arm), arm.held_out()) for arm in results.arms.values()]
    return chart(name, f"Evaluated reward against {axis}", _apart(curves), Axes(x=axis, y="reward", legend=False))


def differences(results: StudyResults) -> Markup:
    """Each arm's evaluated reward less that of the arm it is compared with, seed by seed, with 95% t-intervals."""
    curves = []
    for name, other in plan.compared(results.study):
        arm = results.arms[name]
        found = [statistics.interval(column) for column in (arm.held_out() - results.arms[other].held_out()).T]
        colour, dashed = looks(results)[name]
        curves.append(
            Curve(
                label=name,
                x=arm.evaluated,
                y=[one.mean for one in found],
                low=[one.low for one in found],
                high=[one.high for one in found],
                colour=colour,
                dashed=dashed,
                bars=True,
            )
        )
    axes = Axes(x="updates", y="difference of reward", reference=0, legend=False)
    return chart("differences", "Difference of the evaluated reward, by update", _apart(curves), axes)


def history(
    results: StudyResults, name: str, title: str, unit: str, *, percent: bool = False, zero: bool = True
) -> Markup:
    """Chart a recorded value over updates, with one standard error at the end."""
    curves = [
        _curve(results, arm, list(range(1, arm.run.steps + 1)), arm.trained(name), thin=True)
        for arm in results.arms.values()
    ]
    axes = Axes(x="updates", y=unit, percent=percent, from_zero=zero, legend=False)
    return chart(name.replace("_", "-"), f"{title}, by update", _apart(curves), axes)


def by_timestep(results: StudyResults, name: str, title: str, unit: str, *, percent: bool = False) -> list[Markup]:
    """A diagnostic's mean over updates and seeds, by timestep: a chart for each set of timesteps that arms have."""
    grids: dict[tuple[float, ...], list[ArmRuns]] = {}
    for arm in results.arms.values():
        grids.setdefault(tuple(arm.timesteps), []).append(arm)
    charts = []
    for place, (timesteps, arms) in enumerate(grids.items()):
        curves = [_curve(results, arm, list(range(len(timesteps))), arm.per_timestep(name), thin=True) for arm in arms]
        ticks = [f"{timestep:.0f}" for timestep in timesteps]
        axes = Axes(
            x="timestep, from noise to image", y=unit, ticks=ticks, percent=percent, from_zero=True, legend=False
        )
        charts.append(
            chart(f"timestep-{name.replace('_', '-')}-{place}", f"{title}, by timestep", _apart(curves), axes)
        )
    return charts


def _curve(
    results: StudyResults, arm: ArmRuns, x: Sequence[float], rows: Float[np.ndarray, "P N"], *, thin: bool = False
) -> Curve:
    """The mean over seeds, with a bar of one standard error at the last point: bands hide each other."""
    mean = rows.mean(0)
    error = np.full_like(mean, np.nan)
    error[-1:] = rows[:, -1:].std(0, ddof=1) / np.sqrt(len(rows))
    colour, dashed = looks(results)[arm.name]
    return Curve(
        label=arm.name,
        x=list(x),
        y=mean.tolist(),
        low=(mean - error).tolist(),
        high=(mean + error).tolist(),
        colour=colour,
        thin=thin,
        dashed=dashed,
        bars=True,
    )


def _apart(curves: Sequence[Curve]) -> list[Curve]:
    """Move curves a little along x, each by another amount, so that bars at one place stand beside each other."""
    ends = [value for curve in curves for value in curve.x]
    room = 0.012 * (max(ends) - min(ends))
    middle = (len(curves) - 1) / 2
    return [replace(curve, shift=room * (place - middle)) for place, curve in enumerate(curves)]
