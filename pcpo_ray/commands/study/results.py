"""A study's stored runs: checked against what the study asks for, and read into arms.

P seeds by E evaluations or U updates.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from pcpo_ray import config
from pcpo_ray.commands import opening
from pcpo_ray.commands.report import charts
from pcpo_ray.commands.study import axes, plan, statistics
from pcpo_ray.commands.study.plan import Planned, Study
from pcpo_ray.config import TOTAL
from pcpo_ray.errors import RunError, StudyError
from pcpo_ray.runs import lines
from pcpo_ray.runs.intervals import Estimate
from pcpo_ray.runs.records import Record, read_record

FREE = ("workers", "trackers", "checkpoints", "notify")
"""Keys in which a stored run may differ from its arm: none changes what it learns."""
UNRECORDED = "not on record"


def finished(folder: Path, run: config.Run) -> bool:
    """Return whether a run's folder records its last step and the evaluation after it."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return False
    last = {row["kind"]: row["step"] for row in lines.metrics(path).rows}
    return all(last.get(kind) == run.steps for kind in ("train", "evaluation"))


def check_stored(study: Study, folder: Path, wanted: Sequence[Planned]) -> None:
    """Check that the stored runs, complete or not, are the planned ones. Raises StudyError that names others."""
    wrong: list[str] = []
    known: dict[Path, str] = {}
    for one in wanted:
        path = folder / one.run.name
        if (path / "config.yaml").is_file():
            wrong += _changed(path, one.run, known)
    if wrong:
        raise StudyError(
            "\n".join(
                [
                    f"study {study.name}: {folder} has {len(wrong)} runs of other arms; delete them, or give the study "
                    "another name:",
                    *wrong,
                ]
            )
        )


def _changed(path: Path, wanted: config.Run, known: dict[Path, str]) -> list[str]:
    """In what a stored run is another than the one wanted; that it is of another version of the config."""
    try:
        found = opening.changes(path, wanted, free=FREE, known=known)
    except RunError as error:
        return [f"  {path.name}: {error}"]
    changed = [*found.config, *found.files, *found.own]
    return [f"  {path.name}: {'; '.join(changed)}"] if changed else []


def chosen(study: Study, folder: Path) -> dict[str, float]:
    """The rate of each arm that its search's runs speak for; empty where there is no search. Raises StudyError."""
    return {arm: max(scores, key=lambda rate: (scores[rate], -rate)) for arm, scores in searched(study, folder).items()}


def searched(study: Study, folder: Path) -> dict[str, dict[float, float]]:
    """Return the evaluated reward by arm and rate, averaged over evaluations after the start and over seeds."""
    wanted = plan.search_runs(study)
    records = _read(study, folder, wanted)
    found: dict[str, dict[float, list[float]]] = {}
    for one, record in zip(wanted, records, strict=True):
        assert one.rate is not None
        after = [_value(row, TOTAL) for row in record.evaluated if row["step"] > 0]
        if not np.isfinite(after).all():
            raise StudyError(f"study {study.name}: {one.run.name} has evaluations without a score: {after}")
        found.setdefault(one.arm, {}).setdefault(one.rate, []).append(float(np.mean(after)))
    return {arm: {rate: float(np.mean(values)) for rate, values in rates.items()} for arm, rates in found.items()}


def _read(study: Study, folder: Path, wanted: Sequence[Planned]) -> list[Record]:
    """The records of runs that must be whole and as wanted. Raises StudyError naming those that are not."""
    check_stored(study, folder, wanted)
    missing = [one for one in wanted if not finished(folder / one.run.name, one.run)]
    if missing:
        named = ", ".join(f"{one.arm} seed {one.seed}" for one in missing)
        raise StudyError(
            f"study {study.name}: {len(missing)} of {len(wanted)} runs are missing or unfinished in {folder}: {named}; "
            "make them (the same command without --report-only), or take these seeds out of the study"
        )
    return [read_record(folder / one.run.name) for one in wanted]


@dataclass(frozen=True)
class ArmRuns:
    """One arm's runs, in the order of the study's seeds; all have the same steps and evaluations."""

    name: str
    rate: float
    records: Sequence[Record]

    @property
    def run(self) -> config.Run:
        return self.records[0].run

    @cached_property
    def evaluated(self) -> list[int]:
        """The E steps evaluated."""
        return [row["step"] for row in self.records[0].evaluated]

    @cached_property
    def watched(self) -> list[str]:
        """The rewards evaluated, the trained total first."""
        return list(self.records[0].evaluated[0]["rewards"])

    @cached_property
    def quality(self) -> list[str]:
        """Names of the quality measures that every evaluation has."""
        rows = [row.get("quality", {}) for record in self.records for row in record.evaluated]
        return [name for name in rows[0] if all(name in row for row in rows)]

    def held_out(self, name: str = TOTAL) -> Float[np.ndarray, "P E"]:
        """A reward's or a quality's mean at each evaluation."""
        return np.array([[_value(row, name) for row in record.evaluated] for record in self.records], float)

    def trained(self, name: str) -> Float[np.ndarray, "P U"]:
        """Return a value recorded at each update; NaN where it was null."""
        rows = [[row[name] for row in record.steps] for record in self.records]
        return np.array([[math.nan if value is None else value for value in row] for row in rows], float)

    def per_timestep(self, name: str) -> Float[np.ndarray, "P K"]:
        """A diagnostic of each of the K trained steps, the mean over updates that have it."""
        return np.array([charts.mean_by_timestep(record.steps, name) for record in self.records], float)

    @cached_property
    def timesteps(self) -> list[float]:
        return list(self.records[0].steps[-1]["per_timestep"]["timestep"])

    @cached_property
    def seconds(self) -> Float[np.ndarray, "P E"]:
        """Spent on updates before each evaluation; evaluations and starting up are not counted."""
        spent = [np.cumsum([0.0, *(row["seconds"] for row in record.steps)]) for record in self.records]
        return np.array([[row[step] for step in self.evaluated] for row in spent])

    @cached_property
    def samples(self) -> list[int]:
        """Images trained on before each evaluation."""
        return [step * self.run.rollout.prompts * self.run.rollout.images for step in self.evaluated]

    def at(self, name: str, steps: Float[np.ndarray, " P"]) -> Float[np.ndarray, " P"]:
        """A reward or quality at one point of each run, straight between evaluations."""
        values = self.held_out(name)
        return np.array([np.interp(step, self.evaluated, row) for step, row in zip(steps, values, strict=True)])

    def curves(self) -> list[tuple[Sequence[float], Sequence[float]]]:
        """Return the evaluated steps and the reward there, for each seed."""
        return [(self.evaluated, row.tolist()) for row in self.held_out()]


def _value(row: Mapping[str, Any], name: str) -> float:
    found = row["rewards"][name] if name in row["rewards"] else row["quality"][name]
    value = found["mean"] if isinstance(found, Mapping) else found
    return math.nan if value is None else float(value)


@dataclass(frozen=True)
class Comparison:
    """An arm against another over the seeds: the reward at the end, and the updates to each target.

    `p` values are those of the study's comparisons of the same thing together (Holm). `alike`: whether both draw their
    evaluations with the same sampler, so that their difference is the weights' alone.
    """

    arm: str
    other: str
    alike: bool
    change: Estimate
    p: float
    adjusted: float
    speeds: Sequence[statistics.Speed]
    speeds_adjusted: Sequence[float]


@dataclass(frozen=True)
class StudyResults:
    """A study's stored runs, whole and equal where they must be."""

    study: Study
    folder: Path
    arms: Mapping[str, ArmRuns]
    search: Mapping[str, Mapping[float, float]]
    surroundings: Mapping[str, Sequence[str]]

    @property
    def first(self) -> ArmRuns:
        return self.arms[self.study.first]

    def targets(self, value: float) -> list[float]:
        """The reward to reach at each seed."""
        assert self.study.targets is not None
        if self.study.targets.kind == "level":
            return [value] * len(self.study.seeds)
        return [float(start) + value for start in self.first.held_out()[:, 0]]

    def reached(self, arm: ArmRuns, value: float) -> statistics.Reached:
        return statistics.reached(arm.curves(), self.targets(value))

    @cached_property
    def comparisons(self) -> list[Comparison]:
        values = self.study.targets.values if self.study.targets else ()
        pairs = plan.compared(self.study)
        ends = {name: arm.held_out()[:, -1] for name, arm in self.arms.items()}
        changes = [ends[arm] - ends[other] for arm, other in pairs]
        p = [statistics.sign_flip(change) for change in changes]
        times = {name: [self.reached(arm, value) for value in values] for name, arm in self.arms.items()}
        speeds = [[statistics.speed(*both) for both in zip(times[a], times[b], strict=True)] for a, b in pairs]
        columns = [statistics.holm([row[place].p for row in speeds]) for place in range(len(values))]
        adjusted = statistics.holm(p)
        return [
            Comparison(
                arm=arm,
                other=other,
                alike=axes.same(*(axes.drawn(self.arms[name].run) for name in (arm, other))),
                change=statistics.interval(changes[row]),
                p=p[row],
                adjusted=adjusted[row],
                speeds=speeds[row],
                speeds_adjusted=[column[row] for column in columns],
            )
            for row, (arm, other) in enumerate(pairs)
        ]

    def matched(self, arm: ArmRuns, other: ArmRuns) -> tuple[statistics.Reached, statistics.Reached]:
        """When each of two arms' runs first has the highest reward that both have at some evaluation, seed by seed."""
        highest = np.minimum(*(np.nanmax(one.held_out(), axis=1) for one in (arm, other))).tolist()
        return statistics.reached(arm.curves(), highest), statistics.reached(other.curves(), highest)


def read(study: Study, folder: Path) -> StudyResults:
    """Read the study's runs from its folder.

    Raises StudyError for runs that are missing, unfinished, of other arms or another version of the config, that
    recorded other trained steps or weights than arms which are compared may have, or that were made by different
    versions or on different backends.
    """
    search = searched(study, folder)
    rates = chosen(study, folder)
    wanted = plan.main_runs(study, rates)
    records = _read(study, folder, wanted)
    arms = {}
    for name in study.arms:
        own = [record for one, record in zip(wanted, records, strict=True) if one.arm == name]
        arms[name] = ArmRuns(name, own[0].run.optimizer.learning_rate, own)
        for record in own:
            steps = [row["step"] for row in record.steps], [row["step"] for row in record.evaluated]
            if steps != ([*range(1, record.run.steps + 1)], arms[name].evaluated):
                raise StudyError(
                    f"study {study.name}: {record.folder} records the steps {steps[0]} and the evaluations {steps[1]}; "
                    f"expected every step to {record.run.steps} and the evaluations {arms[name].evaluated}: delete it"
                )
    _check_recorded(study, arms)
    return StudyResults(study, folder, arms, search, _surroundings(study, records))


def _check_recorded(study: Study, arms: Mapping[str, ArmRuns]) -> None:
    """Check that compared arms recorded the same trained timesteps and loss weights. Raises StudyError."""
    for name, other in plan.compared(study):
        tables = [record.steps[-1]["per_timestep"] for arm in (arms[name], arms[other]) for record in arm.records]
        found = {
            "trained steps": [table["timestep"] for table in tables],
            "mean credit weight": [math.fsum(table["credit_weight"]) / len(table["credit_weight"]) for table in tables],
        }
        for axis, values in found.items():
            if axis not in study.arms[name].varies and not all(axes.same(values[0], value) for value in values):
                raise StudyError(
                    f"study {study.name}: the stored runs of {name} and {other} differ in {axis}: {values}"
                )


def _surroundings(study: Study, records: Sequence[Record]) -> dict[str, list[str]]:
    """By what the runs were made, each kind of thing with all its values. Raises StudyError for several versions."""
    found: dict[str, list[str]] = {"backend": [], "device": [], "cores": [], "versions": []}
    for record in records:
        for event in record.named("started"):
            for key, values in found.items():
                value = event.get(key, UNRECORDED)
                text = ", ".join(value) if isinstance(value, list) else str(value)
                if text not in values:
                    values.append(text)
    for key in ("backend", "versions"):
        if len(found[key]) > 1:
            raise StudyError(
                f"study {study.name}: its runs have several {key}: {found[key]}; make them all with one "
                "(delete those that differ and start the study again)"
            )
    return found
