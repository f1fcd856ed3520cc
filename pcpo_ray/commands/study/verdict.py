"""The verdict of a study: one sentence, and a line for each comparison; never more than its p values allow."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pcpo_ray.commands.report import numbers
from pcpo_ray.commands.study import statistics
from pcpo_ray.commands.study.results import Comparison, StudyResults

LEVEL = 0.05
"""The p value, after Holm, below which a difference is taken for one."""

Tone = Literal["rose", "fell", "unclear"]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One comparison: the arms, the difference, and what follows."""

    tone: Tone
    arms: str
    difference: str
    text: str


@dataclass(frozen=True, kw_only=True)
class StudyVerdict:
    """A headline, and a line for each comparison."""

    tone: Tone
    text: str
    lines: Sequence[Line]


def verdict(results: StudyResults) -> StudyVerdict:
    """Judge a study by its p values after Holm."""
    seeds, found = len(results.study.seeds), results.comparisons
    lines = [_line(one, seeds) for one in found]
    shown = [(one, line) for one, line in zip(found, lines, strict=True) if line.tone != "unclear"]
    least = statistics.least_p(seeds) * len(found)
    if least >= LEVEL:
        of = f" of {len(found)} comparisons" if len(found) > 1 else ""
        text = f"Nothing can be told from {seeds} seeds: p{of} cannot be below {_p(min(1.0, least))}."
        return StudyVerdict(tone="unclear", text=text, lines=lines)
    if not shown:
        return StudyVerdict(tone="unclear", text=f"No difference is shown at {seeds} seeds.", lines=lines)
    said = [f"{one.arm} ends {'higher' if line.tone == 'rose' else 'lower'} than {one.other}" for one, line in shown]
    rest = len(lines) - len(shown)
    text = "; ".join(said) + (
        f"; {rest} other comparison{'s show' if rest > 1 else ' shows'} no difference" if rest else ""
    )
    tones = {line.tone for _, line in shown}
    return StudyVerdict(tone=tones.pop() if len(tones) == 1 else "unclear", text=f"{text}.", lines=lines)


def _line(one: Comparison, seeds: int) -> Line:
    decimals = numbers.places_of(one.change)
    half = (one.change.high - one.change.low) / 2
    difference = numbers.signed(one.change.mean, decimals)
    difference += f" ± {numbers.number(half, decimals)}" if one.change.bounded else ""
    below = one.adjusted < LEVEL
    tone: Tone = "unclear" if not below else "rose" if one.change.mean > 0 else "fell"
    text = (
        f"p {_p(one.adjusted)}: "
        + {
            "rose": "higher",
            "fell": "lower",
            "unclear": f"not told apart by {seeds} seeds",
        }[tone]
    )
    if not below and one.change.bounded and not one.change.low <= 0 <= one.change.high:
        text += "; its t-interval leaves 0 out, which so few seeds do by chance too often to count"
    if not one.alike:
        text += "; each is evaluated with its own sampler"
    return Line(tone=tone, arms=f"{one.arm} against {one.other}", difference=difference, text=text)


def _p(value: float) -> str:
    return f"{value:.2g}" if value < 0.1 else f"{value:.2f}"
