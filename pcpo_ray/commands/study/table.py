"""A study's result as rows of text: in a terminal, in Markdown, and on its page."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape

from pcpo_ray.commands import wrapped
from pcpo_ray.commands.report.numbers import number, places_of
from pcpo_ray.commands.study import statistics, verdict
from pcpo_ray.commands.study.results import ArmRuns, Comparison, StudyResults
from pcpo_ray.config import TOTAL
from pcpo_ray.runs.intervals import Estimate

OTHER_SAMPLER = "†"
"""Behind the name of an arm whose evaluations are drawn with another sampler."""


@dataclass(frozen=True)
class Table:
    """`rows` are as long as `heads`; the first column names the row, or the first `naming` columns together."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str]
    naming: int = 1


def tables(results: StudyResults) -> list[Table]:
    """All of them, the most important first."""
    found = [_outcome(results), *([_targets(results)] if results.study.targets else []), _matched(results)]
    found += [_training(results), _start(results)]
    return [*found, _search(results)] if results.search else found


def _outcome(results: StudyResults) -> Table:
    compared = {comparison.arm: comparison for comparison in results.comparisons}
    seeds, steps = len(results.study.seeds), results.first.run.steps
    return Table(
        f"{_evaluated(results, capital=True)} after {steps} updates",
        ["arm", "reward", "change", "against", "p", "p (Holm)"],
        [_row(arm, compared.get(name)) for name, arm in results.arms.items()],
        [
            f"{seeds} seeds. reward: mean over seeds, ± half its 95% t-interval. change: against the arm named, seed "
            "by seed, ± half the 95% t-interval of the paired differences.",
            _power(seeds, len(results.comparisons)),
            *_samplers(results),
        ],
    )


def _training(results: StudyResults) -> Table:
    """Tabulate what the updates of each arm were like."""
    rows = []
    for arm in results.arms.values():
        clipped = arm.trained("clip_fraction")
        seconds = np.median([[row["seconds"] for row in record.steps] for record in arm.records])
        shares = [f"{100 * np.mean(values):.1f}%" for values in (clipped, clipped[:, 0])]
        norm = number(float(np.mean(arm.trained("gradient_norm"))))
        rows.append([arm.name, f"{arm.rate:g}", *shares, norm, f"{seconds:.2f}"])
    return Table(
        "How they trained",
        ["arm", "rate", "clipped", "first", "gradient norm", "s/update"],
        rows,
        [
            "rate: the learning rate. clipped: the clip fraction, that of (image, step) pairs with |log ratio| above "
            "the clip range, over all updates; first: of the first update alone. gradient norm: before it is cut, mean "
            "over updates. s/update: median, evaluations not counted."
        ],
    )


def _against(comparison: Comparison) -> str:
    return comparison.other if comparison.alike else f"{comparison.other} {OTHER_SAMPLER}"


def _samplers(results: StudyResults) -> list[str]:
    """Which differences are those of the weights and of the sampler together."""
    found = [f"{one.arm} and {one.other}" for one in results.comparisons if not one.alike]
    if not found:
        return []
    return [
        f"{OTHER_SAMPLER} {'; '.join(found)}: each draws its evaluations with its own sampler, so that a difference is "
        "what was learned and the sampler together. What the sampler does to the model as it is stands under Before "
        "training; evaluation.sampling gives all arms one sampler."
    ]


def _row(arm: ArmRuns, comparison: Comparison | None) -> list[str]:
    found = ["", "", "", ""]
    if comparison is not None:
        found = [
            within(comparison.change, sign="+"),
            _against(comparison),
            p(comparison.p),
            p(comparison.adjusted),
        ]
    return [arm.name, within(statistics.interval(arm.held_out()[:, -1])), *found]


def _power(seeds: int, comparisons: int) -> str:
    """Describe the smallest p-value that the test can give."""
    least = statistics.least_p(seeds)
    lowest = min(1.0, comparisons * least)
    text = (
        f"p: exact sign-flip test over the {seeds} paired seeds, two-sided; it cannot be below {p(least)}. p (Holm): "
        f"adjusted for the {comparisons} comparisons; the smallest of them cannot be below {p(lowest)}."
    )
    return text if lowest < 0.05 else f"{text} So no difference can be significant at 0.05 after Holm here."


def _targets(results: StudyResults) -> Table:
    study = results.study
    assert study.targets is not None
    gain = study.targets.kind == "gain"
    rows = []
    for place, value in enumerate(study.targets.values):
        for name, arm in results.arms.items():
            when = results.reached(arm, value)
            row = [f"{value:+g}" if gain else f"{value:g}", name, f"{int(when.reached.sum())}/{len(when.reached)}"]
            row.append(f"> {when.end:g}" if when.median is None else f"{when.median:.1f}")
            compared = [comparison for comparison in results.comparisons if comparison.arm == name]
            for one in compared:
                row += [speed(one.speeds[place]), _against(one), p(one.speeds[place].p), p(one.speeds_adjusted[place])]
            rows.append(row if compared else [*row, "", "", "", ""])
    start = f"above {study.first}'s reward before training at the same seed"
    meant = start if gain else f"the {_evaluated(results)} itself"
    return Table(
        "Updates to a target",
        ["target", "arm", "reached", "median updates", "ratio", "against", "p", "p (Holm)"],
        rows,
        [
            f"target: {meant}; reached where the straight line between two evaluations first crosses it.",
            "ratio: mean updates of the arm it is compared with, over its own; above 1 it is faster. In brackets a 95% "
            "bootstrap interval over paired seeds, its percentiles widened for few seeds. A run that ends without "
            "reaching the target counts with its last update: > or < say on which side of the ratio the truth is then, "
            "and where both arms have such runs nothing follows (?). p as above, for each target by itself.",
            *_samplers(results),
        ],
        naming=2,
    )


def _levels(other: str) -> str:
    """Explain the cells that `_compared` writes."""
    return f"in brackets the difference from {other}, seed by seed, ± half its 95% t-interval."


def _matched(results: StudyResults) -> Table:
    compared = [(results.arms[one.arm], results.arms[one.other]) for one in results.comparisons]
    times = [results.matched(*pair) for pair in compared]
    both = list(zip(compared, times, strict=True))
    rows = [["updates", *(_compared(own.times, others.times) for own, others in times)]]
    for name in (TOTAL, *_measures(results)):
        values = [(arm.at(name, own.times), other.at(name, others.times)) for (arm, other), (own, others) in both]
        rows.append([name, *(_compared(*pair) for pair in values)])
    return Table(
        f"At the same {_evaluated(results)}",
        ["measure", *(f"{one.arm} against {_against(one)}" for one in results.comparisons)],
        rows,
        [
            "Of two arms that are compared, where each run first has the highest reward that both reach at its seed; "
            "one that is never as low is read at its start, which the row of the reward shows. "
            f"Means over seeds, straight between evaluations; {_levels('the arm compared with')}",
            *_samplers(results),
        ],
    )


def _measures(results: StudyResults) -> list[str]:
    """List the rewards and measures of every arm's evaluations, besides the trained total."""
    first = results.first
    arms = results.arms.values()
    twice = {first.run.rewards[0].name} if first.records[0].sole else set()  # the total again
    return [
        name
        for name in (*(name for name in first.watched[1:] if name not in twice), *first.quality)
        if all(name in arm.watched or name in arm.quality for arm in arms)
    ]


def _start(results: StudyResults) -> Table:
    """Tabulate the untrained model under each way of sampling; arms with equal numbers share a column."""
    measures = [TOTAL, *_measures(results)]
    alike: dict[bytes, list[str]] = {}
    for name, arm in results.arms.items():
        alike.setdefault(b"".join(arm.held_out(one)[:, 0].tobytes() for one in measures), []).append(name)
    rows = []
    for measure in measures:
        found = [results.arms[names[0]].held_out(measure)[:, 0] for names in alike.values()]
        rows.append([measure, _compared(found[0], None), *(_compared(one, found[0]) for one in found[1:])])
    return Table(
        "Before training",
        ["measure", *(", ".join(names) for names in alike.values())],
        rows,
        [
            "At the first evaluation, of the model as it is; arms that sample alike share a column. Means over seeds, "
            f"± half the 95% t-interval; {_levels(results.first.name)}"
        ],
    )


def _compared(values: Float[np.ndarray, " P"], others: Float[np.ndarray, " P"] | None) -> str:
    """Its mean over seeds, and how much it differs from the others' at the same seeds."""
    found = statistics.interval(values)
    if others is None:
        return within(found)
    difference = statistics.interval(values - others)
    return f"{number(found.mean, places_of(difference))} ({within(difference, sign='+')})"


def _search(results: StudyResults) -> Table:
    search = results.study.search
    assert search is not None
    rows = []
    for name, scores in results.search.items():
        kept = results.arms[name].rate
        rows.append([name, *(f"{number(scores[rate])}{' *' if rate == kept else ''}" for rate in search.rates)])
    return Table(
        "The search for a learning rate",
        ["arm", *(f"{rate:g}" for rate in search.rates)],
        rows,
        [
            "The same rates for every arm, on seeds that the study does not use: "
            f"{', '.join(map(str, search.seeds))}. {_evaluated(results, capital=True)}, averaged over the evaluations "
            "after the start and the seeds; the highest (*) is kept, of equal ones the lowest rate."
        ],
    )


def _evaluated(results: StudyResults, *, capital: bool = False) -> str:
    """Name what evaluations measure, for a reader."""
    text = results.first.run.of_evaluation("reward")
    return text[0].upper() + text[1:] if capital else text


def estimate(value: Estimate) -> str:
    """A mean and its interval."""
    if not math.isfinite(value.mean):
        return "-"
    decimals = places_of(value)
    if not value.bounded:
        return number(value.mean, decimals)
    return f"{number(value.mean, decimals)} ({number(value.low, decimals)} to {number(value.high, decimals)})"


def within(value: Estimate, *, sign: str = "") -> str:
    """A mean and half of its t-interval, to two significant digits of the interval's width."""
    if not math.isfinite(value.mean):
        return "-"
    half = (value.high - value.low) / 2
    decimals = places_of(value)
    return f"{number(value.mean, decimals, sign)} ± {number(half, decimals)}" if value.bounded else number(value.mean)


def speed(value: statistics.Speed) -> str:
    """A ratio, and on which side of it the truth is."""
    if value.bound == "?":
        return "?"
    return f"{value.bound}{' ' if value.bound else ''}{estimate(value.ratio)}"


def p(value: float) -> str:
    """A p value; small ones are not rounded to 0."""
    return f"{value:.2g}" if value < 0.1 else f"{value:.2f}"


def markdown(results: StudyResults) -> str:
    """table.md."""
    study = results.study
    judged = verdict.verdict(results)
    parts = [f"# {study.name}", *([study.question.strip()] if study.question else []), f"**{judged.text}**"]
    parts.append("\n".join(f"- {line.arms}: {line.difference}; {line.text}" for line in judged.lines))
    for table in tables(results):
        lines = [table.heads, ["---"] * len(table.heads), *table.rows]
        cells = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        parts += [f"## {table.title}", cells, "\n".join(f"- {note}" for note in table.notes)]
    made = "; ".join(f"{key}: {' / '.join(values)}" for key, values in results.surroundings.items())
    return "\n\n".join([*parts, f"Made on: {made}."]) + "\n"


def show(results: StudyResults, console: Console) -> None:
    """The verdict and the tables in a terminal; a table that is wider than it is folded into several."""
    from rich import box
    from rich.table import Table as Drawn

    judged = verdict.verdict(results)
    console.print(judged.text, style="bold", markup=False, highlight=False)
    for line in judged.lines:
        for part in wrapped.rows(f"  {line.arms}: {line.difference}; {line.text}", console.width, hang=2):
            console.print(part, markup=False, emoji=False, highlight=False, soft_wrap=True)
    for table in tables(results):
        console.print()
        for place, columns in enumerate(folded(table, console.width)):
            title = table.title if place == 0 else f"{table.title} (more)"
            drawn = Drawn(title=title, title_justify="left", box=box.SIMPLE_HEAD, title_style="bold")
            for column in columns:
                drawn.add_column(table.heads[column], no_wrap=True)
            for row in table.rows:
                drawn.add_row(*(escape(row[column]) for column in columns))
            console.print(drawn)
        for note in table.notes:
            console.print(note, style="dim", markup=False, highlight=False)


PADDING = 3
"""Columns of a terminal between two columns of a table; one more is at its edge."""


def folded(table: Table, width: int) -> list[list[int]]:
    """Divide a table's columns among tables that a terminal has room for; in each, the first ones name the row."""
    wide = [
        PADDING + max(cell_len(text) for text in (head, *(row[place] for row in table.rows)))
        for place, head in enumerate(table.heads)
    ]
    naming = list(range(table.naming))
    found = [[*naming]]
    for place in range(table.naming, len(table.heads)):
        if len(found[-1]) > len(naming) and sum(wide[column] for column in (*found[-1], place)) >= width:
            found.append([*naming])
        found[-1].append(place)
    return found
