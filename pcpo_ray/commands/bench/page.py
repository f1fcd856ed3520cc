"""Benchmark results as tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from pcpo_ray.commands.bench.results import Bench, Compared, Results
from pcpo_ray.commands.bench.rows import Goal, Row, spread

NUMBER = ".4g"

WIDTH = 144
"""The least characters per line: a narrower terminal breaks the lines of tables, but nothing is left out."""


def wide() -> Console:
    """Make a console wide enough for the tables."""
    return Console(width=max(Console().width, WIDTH))


def head(results: Results, console: Console) -> None:
    """Print the machine, and the figures that cannot be measured on it."""
    say(console, machine(results.machine))
    if results.machine["device"] == "CPU":
        say(console, "no GPU here: all rows are the CPU's; a GPU's are unmeasured")


def machine(found: Mapping[str, Any]) -> str:
    """Describe the machine in one line."""
    device = "no GPU" if found["device"] == "CPU" else found["device"]
    return f"{found['cpu']}, {found['cores']} cores, {device}; {', '.join(found['versions'])}"


def show(bench: Bench, console: Console) -> None:
    """Print each row's figure, limit, ratio with its range, and goal; then its facts, one per line."""
    table = _table("", "unit", "figure", "limit", "ratio", "least..greatest", "goal", "")
    times = "once" if bench.repeats == 1 else f"medians of {bench.repeats}"
    table.title = f"{bench.name}: {times}, in {bench.seconds:.0f} s"
    for row in bench.rows:
        if row.unmeasured:
            table.add_row(row.name, row.unit, "unmeasured", "", "", "", goal(row.goal), "")
            continue
        ratio = spread(row.ratios) if row.ratios else None
        table.add_row(
            row.name,
            row.unit,
            f"{spread(row.figures).median:{NUMBER}}",
            f"{spread(row.limits).median:{NUMBER}}" if row.limits else "",
            f"{ratio.median:.3f}" if ratio else "",
            f"{ratio.low:.3f}..{ratio.high:.3f}" if ratio else "",
            goal(row.goal),
            {None: "", True: "reached", False: "MISSED"}[row.reached],
        )
    console.print(table)
    limits = dict.fromkeys(row.limit for row in bench.rows if row.limits)
    for limit in limits:
        say(console, f"  limit: {limit}")
    for row in bench.rows:
        if row.unmeasured:
            say(console, f"  {row.name} is unmeasured: {row.unmeasured}")
        if row.facts:
            say(console, f"  {row.name}: " + "; ".join(f"{name} {_told(value)}" for name, value in row.facts.items()))


def goal(wanted: Goal | None) -> str:
    """Describe the goal in words."""
    if wanted is None:
        return ""
    sign = "≥" if wanted.bound == "at least" else "≤"
    return f"{sign} {wanted.value:g}" + (" (figure)" if wanted.of == "figure" else "")


def compare(pairs: Sequence[Compared], first: Results, second: Results, console: Console) -> None:
    """Print both files' ratios, or figures, side by side (`Row.judged`)."""
    say(console, f"first:  {first.made}, {machine(first.machine)}")
    say(console, f"second: {second.made}, {machine(second.machine)}")
    names = [{bench.name for bench in results.benches} for results in (first, second)]
    if alone := sorted(names[0] ^ names[1]):
        say(console, f"in one of the files only, left out: {', '.join(alone)}")
    table = _table("", "", "first", "second", "second / first", "goal")
    for pair in pairs:
        change = "" if pair.change is None else f"{pair.change:.3f}"
        table.add_row(
            pair.bench, pair.first.name, _shown(pair.first), _shown(pair.second), change, goal(pair.first.goal)
        )
    console.print(table)


def _table(*columns: str) -> Table:
    table = Table(title_justify="left", box=None, padding=(0, 1))
    for name in columns:
        table.add_column(name, justify="left" if name in ("", "unit", "goal") else "right", no_wrap=True)
    return table


def _shown(row: Row) -> str:
    if row.unmeasured:
        return "unmeasured"
    found = spread(row.judged)
    if row.by_figure:
        return f"{found.median:{NUMBER}} {row.unit}"
    return f"{found.median:.3f} ({found.low:.3f}..{found.high:.3f})"


def _told(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:{NUMBER}}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_told(one)}" for key, one in value.items())
    return str(value)


def say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
