"""Reference curves: the evaluated rewards of a recipe at several seeds, and where a run lies beside them.

A file a recipe in curves/, made by `pcpo-ray study --reference` from whole runs. A run has the curves of the recipe
that it equals in all that decides its rewards, and those of that recipe's baseline.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from pcpo_ray import config
from pcpo_ray.commands.report import charts
from pcpo_ray.config import NonNegativeInt, files
from pcpo_ray.config.base import Number
from pcpo_ray.errors import ConfigError
from pcpo_ray.runs.intervals import Estimate
from pcpo_ray.runs.lines import counted
from pcpo_ray.runs.records import Record

FOLDER = Path(__file__).parent / "curves"

LEVEL = 0.95
"""The fraction of further runs that a band holds at each evaluation."""

FEWEST_SEEDS = 3
"""Seeds of which a band can be made: from two it would be 22 times as wide as they are apart."""

FREE = (
    *("name", "seed", "workers", "checkpoints", "trackers", "monitors", "notify"),
    *("model.text_cache", "optimizer.micro_batch", "rollout.reward_failures"),
    *("evaluation.every", "evaluation.train_count", "evaluation.rewards", "evaluation.quality"),
)
"""Keys that do not move an evaluated reward. `steps` is one more where the schedule has no end; watched rewards are
compared one by one."""

SHARED = ("model", "prompts", "rewards", "evaluation")
"""Keys that a run and the curves of its baseline must have alike for their rewards to be compared."""

NEAR = 3
"""Keys up to which a run counts as a changed recipe, and those that one message names."""

ROUNDING = 1e-6
"""Relative difference of two rewards that counts as none: another machine rounds otherwise."""


INNERMOST = re.compile(r"\[\n[^\[\]{}\"]*\n\s*\]")
"""A list of numbers in indented JSON."""


@config.config
class ReferenceCurves:
    """Runs of one recipe that differ by their seeds alone.

    `rewards` has a row for each of the evaluated `steps`, with a value for each of the `seeds`. `resolved` is the
    recipe's whole config, `inputs` has digests of the files that it read (training/inputs.py), and `surroundings` what
    the runs were made with.
    """

    recipe: str
    baseline: str | None = None
    """The recipe that this one is to be compared with."""
    surroundings: Mapping[str, tuple[str, ...]]
    seeds: tuple[NonNegativeInt, ...]
    steps: tuple[NonNegativeInt, ...]
    rewards: Mapping[str, tuple[tuple[Number, ...], ...]]
    inputs: Mapping[str, Mapping[str, str]]
    resolved: Mapping[str, Any]

    def __post_init__(self) -> None:
        if len(set(self.seeds)) < FEWEST_SEEDS:
            raise ValueError(f"seeds are {list(self.seeds)}; expected at least {FEWEST_SEEDS} different ones")
        for name, rows in self.rewards.items():
            found = [len(row) for row in rows]
            if found != [len(self.seeds)] * len(self.steps):
                raise ValueError(
                    f"rewards.{name} has rows of {found} values; expected {len(self.steps)} rows, one for each "
                    f"evaluated step, of {len(self.seeds)} values, one for each seed"
                )

    @cached_property
    def run(self) -> config.Run:
        """The recipe's config as this version reads it."""
        return files.parse(self.resolved, source=f"the reference curves of {self.recipe}")

    def start(self, name: str) -> Estimate:
        """Give the mean of a reward at the first evaluation, and the interval in which one more run begins."""
        return _predicted(self.rewards[name][0])

    def changes(self, name: str) -> dict[int, Estimate]:
        """Give the mean change of a reward since the first evaluation by step, and the interval for one more run.

        Seeds are evaluated on other prompts, which moves levels more than training does; a change is mostly training's.
        """
        first, *rows = (np.array(row) for row in self.rewards[name])
        return {step: _predicted(row - first) for step, row in zip(self.steps[1:], rows, strict=True)}


def _predicted(values: Sequence[float] | Float[np.ndarray, " n"]) -> Estimate:
    """Give the mean of n values, and the 95% prediction interval for one more.

    mean ± t s sqrt(1 + 1/n), t of n - 1 degrees of freedom: they are taken for normally distributed.
    """
    from scipy.stats import t

    n, mean = len(values), float(np.mean(values))
    half = float(t.ppf(0.5 + LEVEL / 2, n - 1) * np.std(values, ddof=1) * math.sqrt(1 + 1 / n))
    return Estimate(mean=mean, low=mean - half, high=mean + half)


def dumped(curves: ReferenceCurves) -> str:
    """Write curves as JSON, a list of numbers a line; `read` gives the same back."""
    text = json.dumps(files.plain(curves), indent=1, allow_nan=False)
    return INNERMOST.sub(lambda found: json.dumps(json.loads(found[0])), text) + "\n"


def read(path: Path) -> ReferenceCurves:
    """Read the curves in a file. Raises ConfigError."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be read as JSON ({error}); make it anew: pcpo-ray study --reference {path.stem} --local"
        ) from None
    return files.parse_as(ReferenceCurves, data, source=str(path))


def known() -> dict[str, ReferenceCurves]:
    """Read all curves that come with the package, by their recipe. Raises ConfigError."""
    return {path.stem: read(path) for path in sorted(FOLDER.glob("*.json"))}


def differing(run: config.Run, curves: ReferenceCurves, inputs: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Describe by key how a run differs from the recipe of some curves, in what decides its rewards.

    `inputs` are the digests of the files that the run read; those that only one of the two knows are left out.
    """
    ends = run.optimizer.schedule not in config.ENDLESS
    free = FREE if ends else (*FREE, "steps")
    found = files.differing(files.plain(curves.run), files.plain(run))
    for key in sorted(curves.inputs.keys() & inputs.keys()):
        if curves.inputs[key] != inputs[key]:
            found.setdefault(key, "other files")
    return {key: text for key, text in found.items() if not f"{key}.".startswith(tuple(f"{one}." for one in free))}


@dataclass(frozen=True, kw_only=True)
class Place:
    """The evaluated steps at which a run is above, inside and below a band."""

    above: tuple[int, ...]
    inside: tuple[int, ...]
    below: tuple[int, ...]

    def said(self, band: str) -> str:
        """Say it in words."""
        count = len(self.above) + len(self.inside) + len(self.below)
        if not count:
            return f"not compared with the band of {band}: this run has no later evaluation at a step of theirs"
        if len(self.inside) == count:
            each = _steps(self.inside) if count == 1 else f"each of {count} evaluations"
            return f"inside the band of {band} at {each}"
        sides = [(side, steps) for side, steps in (("above", self.above), ("below", self.below)) if steps]
        parts = [
            f"{side} {'it' if place else f'the band of {band}'} at {_steps(steps)}"
            for place, (side, steps) in enumerate(sides)
        ]
        if self.inside:
            parts.append(f"inside it at {_steps(self.inside)}")
        return ", ".join(parts)


def placed(values: Mapping[int, float], band: Mapping[int, Estimate]) -> Place:
    """Compare a run's values with a band, at the steps that both have."""
    found: dict[str, tuple[int, ...]] = {"above": (), "inside": (), "below": ()}
    for step in sorted(values.keys() & band.keys()):
        value, one = values[step], band[step]
        if not math.isfinite(value):
            continue
        room = ROUNDING * max(abs(value), abs(one.mean))
        side = "above" if value > one.high + room else "below" if value < one.low - room else "inside"
        found[side] = (*found[side], step)
    return Place(**found)


def _shifted(change: Estimate, start: float) -> Estimate:
    return Estimate(mean=start + change.mean, low=start + change.low, high=start + change.high)


def _steps(steps: Sequence[int]) -> str:
    *others, last = map(str, steps)
    return f"steps {', '.join(others)} and {last}" if others else f"step {last}"


@dataclass(frozen=True, kw_only=True)
class Beside:
    """A run beside the curves of its recipe: the bands of each reward, and sentences on where it lies.

    `differing` says by key why it has no band; then there are no bands. `own` are the recipe's curves.
    """

    record: Record
    own: ReferenceCurves
    baseline: ReferenceCurves | None
    differing: Mapping[str, str]
    inputs: Mapping[str, Mapping[str, str]]

    def bands(self, name: str) -> list[tuple[ReferenceCurves, dict[int, Estimate]]]:
        """Give the bands that a reward has, as levels that begin where this run began: the recipe's, its baseline's."""
        start = self._start(name)
        if self.differing or start is None:
            return []
        both = [self.own, *([] if self.baseline is None else [self.baseline])]
        alike = [one for one in both if name in one.rewards and self._alike(one, name)]
        return [(one, {step: _shifted(change, start) for step, change in one.changes(name).items()}) for one in alike]

    def _start(self, name: str) -> float | None:
        """Give the reward at the curves' first step; None without an evaluation there that has a score."""
        found = self.record.levels(name).get(self.own.steps[0])
        return found.mean if found is not None and math.isfinite(found.mean) else None

    def _alike(self, curves: ReferenceCurves, name: str) -> bool:
        """Return whether a reward gives the same scores to the same images here and there, as far as is known."""
        one, read = _scored(self.record.run, self.inputs, name)
        other, also = _scored(curves.run, curves.inputs, name)
        return one == other and (not read or not also or read == also)

    def sentence(self, name: str) -> str | None:
        """Say where the run's change lies beside its bands, and an unusual start; None without a band."""
        values = {step: level.mean for step, level in self.record.levels(name).items()}
        labels: dict[Place, list[str]] = {}
        for one, band in self.bands(name):
            place, own = placed(values, band), "its baseline " * (one is self.baseline)
            labels.setdefault(place, []).append(f"{len(one.seeds)} seeds of {own}{one.recipe}")
        if not labels:
            return None
        found = [place.said(" and that of ".join(of)) for place, of in labels.items()]
        began, usual = self._start(name), self.own.start(name)
        if began is not None and not placed({0: began}, {0: usual}).inside:
            found.append(
                f"the run began at {began:.3g}, and 95 of 100 runs of {self.own.recipe} begin at {usual.low:.3g} to "
                f"{usual.high:.3g}"
            )
        return "; ".join(found)

    def chart(self, drawing: str, name: str, title: str, unit: str) -> Markup | None:
        """Draw the run's reward over its bands, under the name of the drawing; None without one."""
        bands = self.bands(name)
        labels = [f"{'baseline' if one is self.baseline else 'recipe'}, {len(one.seeds)} seeds" for one, _ in bands]
        begin = self._start(name) or 0.0
        at = {self.own.steps[0]: Estimate(mean=begin, low=begin, high=begin)}
        drawn = [(label, at | band) for label, (_, band) in zip(labels, bands, strict=True)]
        until = max(self.record.run.steps, *self.own.steps)
        return charts.beside(drawing, title, unit, self.record.levels(name), drawn, until=until) if bands else None

    @property
    def notes(self) -> str:
        """Remarks on the bands that a reader must know."""
        seed, last = self.record.run.seed, max(self.own.steps)
        notes = [
            "Bands begin where this run began, for seeds are evaluated on other prompts: compared is the change.",
            "At each evaluation they hold 95 of 100 further runs, if seeds are normally distributed.",
        ]
        if seed in self.own.seeds:
            notes.append(f"This run's seed, {seed}, is one of the recipe's here, so it is no further run.")
        if self.record.done > last:
            notes.append(f"They end at step {last}.")
        return " ".join(notes)

    @property
    def why_not(self) -> str | None:
        """Name the first keys in which the run is not its recipe; None where it is."""
        if not self.differing:
            return None
        shown = [f"{key} ({text})" for key, text in self.differing.items()][:NEAR]
        more = len(self.differing) - len(shown)
        rest = f" and {counted(more, 'more key')}" if more else ""
        return (
            f"No reference band: this run is not {self.own.recipe}, whose {len(self.own.seeds)} seeds are on "
            f"record. It differs in {', '.join(shown)}{rest}."
        )


def beside(record: Record) -> Beside | None:
    """Find the curves of the recipe that a run is of, or nearly; None where there are none."""
    from pcpo_ray.training.inputs import read as read_inputs

    there = known()
    if not there:
        return None
    inputs = read_inputs(record.folder) or {}
    found = {name: differing(record.run, curves, inputs) for name, curves in there.items()}
    named = {name for name, curves in there.items() if curves.run.name == record.run.name}
    nearest = min(found, key=lambda name: (len(found[name]) > 0, name not in named, len(found[name])))
    if nearest not in named and len(found[nearest]) > NEAR:
        return None
    own = there[nearest]
    other = there.get(own.baseline or "")
    if other is not None and any(key.split(".")[0] in SHARED for key in differing(record.run, other, inputs)):
        other = None
    return Beside(record=record, own=own, baseline=other, differing=found[nearest], inputs=inputs)


def _scored(
    run: config.Run, inputs: Mapping[str, Mapping[str, str]], name: str
) -> tuple[dict[str, Any], dict[str, Mapping[str, str]]]:
    """Give what a reward's scores depend on beside the images: its config but for its weight, and its files."""
    for where, rewards in (("rewards", run.rewards), ("evaluation.rewards", run.evaluation.rewards)):
        for place, reward in enumerate(rewards):
            if reward.name == name:
                key = f"{where}.{place}."
                read = {one.removeprefix(key): digests for one, digests in inputs.items() if one.startswith(key)}
                return {**files.plain(reward), "weight": None}, read
    return {}, {}  # the sum of all: TOTAL
