"""Changes of metrics, from what a run records, and who sends them.

The recorder and the loop know one `MetricsReporter`. Changes are made once a step, an evaluation, an event or a phase,
and at most every `REFRESH` seconds from the status: nothing is done per sample.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from pcpo_ray.metrics.catalogue import BY_NAME, Metric

if TYPE_CHECKING:
    from pcpo_ray.data.updates import PoolStatus

REFRESH = 5.0
"""Seconds from one look at a run's status to the next."""

PHASES = ("sample_and_score", "learn", "publish", "evaluate", "checkpoint")
"""What a driver may be at."""

MONITORS = ("diversity", "deviation", "reward", "hacking")
"""What may sound the alarm (monitors.py)."""

LEARNER = {"learner": 1}

OVERALL = {
    "ratio_mean": "ratio_mean",
    "ratio_std": "ratio_deviation",
    "log_ratio_std": "log_ratio_deviation",
    "max_log_ratio": "log_ratio_max",
    "clip_fraction": "clip_fraction",
    "inactive_fraction": "inactive_fraction",
}
"""The diagnostics of objective.py, and their names in the catalogue."""

PER_TIMESTEP = {
    "ratio_mean": "timestep_ratio_mean",
    "log_ratio_std": "timestep_log_ratio_deviation",
    "max_log_ratio": "timestep_log_ratio_max",
    "clip_fraction": "timestep_clip_fraction",
    "inactive_fraction": "timestep_inactive_fraction",
    "gradient_share": "timestep_gradient_share",
    "credit_weight": "timestep_credit_weight",
    "native_weight": "timestep_native_weight",
}

OF_A_STEP = {
    "reward_std": "reward_deviation",
    "group_deviation": "group_deviation",
    "degenerate_groups": "degenerate_groups",
    "rounding_groups": "rounding_groups",
    "advantage_abs_mean": "advantage_magnitude",
    "loss": "loss",
    "kl": "kl",
    "gradient_norm": "gradient_norm",
    "update_ratio": "update_ratio",
    "moved_fraction": "moved_fraction",
    "sample_age": "sample_age",
    "oldest_sample": "sample_age_max",
    "sampler_behind": "sampler_behind",
    "buffer_bytes": "buffer_bytes",
    "step": "step",
    **OVERALL,
}
"""Numbers of a step's row that are gauges as they are."""


@dataclass(frozen=True)
class Change:
    """A gauge's new value (NaN: it has none any more, as Ray shows no NaN), or by how much a counter grows."""

    metric: Metric
    value: float
    labels: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class RunNumbers:
    """How a run is. `tasks` (Tally.tasks) and the pools' losses and setbacks count from the start."""

    step: int
    steps: int
    max_staleness: int
    in_flight: int
    pools: Mapping[str, "PoolStatus"]
    tasks: Mapping[str, Mapping[str, Mapping[str, int]]]


class Exporter(Protocol):
    """Where changes go."""

    def apply(self, run: str, changes: Sequence[Change]) -> None:
        """Show them under the run's name."""

    def close(self) -> None:
        """Show nothing any more."""


class MetricsReporter(Protocol):
    """What the recorder and the loop tell of a run."""

    def row(self, row: Mapping[str, Any]) -> None:
        """A step or an evaluation, as recorded."""

    def event(self, kind: str, details: Mapping[str, Any]) -> None:
        """An event, as recorded."""

    def status(self, standing: RunNumbers) -> None:
        """How the run is, as often as one likes."""

    def phase(self, phase: str) -> None:
        """What the driver is at from now on."""

    def close(self) -> None:
        """It has ended."""


class NoReporter:
    """A Meter that tells nobody."""

    def row(self, row: Mapping[str, Any]) -> None: ...

    def event(self, kind: str, details: Mapping[str, Any]) -> None: ...

    def status(self, standing: RunNumbers) -> None: ...

    def phase(self, phase: str) -> None: ...

    def close(self) -> None: ...


class ExportingReporter:
    """A Meter that hands the changes to an exporter."""

    def __init__(self, run: str, exporter: Exporter, now: Callable[[], float] = time.monotonic) -> None:
        self.run, self.exporter, self.now = run, exporter, now
        self.seen: dict[tuple[str, ...], int] = {}
        self.last: RunNumbers | None = None
        self.looked = -REFRESH

    def row(self, row: Mapping[str, Any]) -> None:
        self._look()
        changes = of_step(row) if row["kind"] == "train" else of_evaluation(row)
        self.exporter.apply(self.run, list(changes))

    def event(self, kind: str, details: Mapping[str, Any]) -> None:
        self.exporter.apply(self.run, list(of_event(kind, details)))

    def status(self, standing: RunNumbers) -> None:
        self.last = standing
        if self.now() - self.looked >= REFRESH:
            self._look()

    def phase(self, phase: str) -> None:
        self.exporter.apply(self.run, list(of_phase(phase)))

    def close(self) -> None:
        self._look()
        self.exporter.close()

    def _look(self) -> None:
        if self.last is None:
            return
        self.looked = self.now()
        self.exporter.apply(self.run, list(of_status(self.last, self.seen)))
        self.seen = totals(self.last)
        self.last = None


def change(name: str, value: float, **labels: str) -> Change:
    """Of the metric of that name. Raises ValueError where its labels are others."""
    metric = BY_NAME[name]
    if set(labels) != set(metric.labels):
        raise ValueError(f"{metric.name} has the labels {list(metric.labels)}; got {list(labels)}")
    return Change(metric, float(value), labels)


def of_step(row: Mapping[str, Any]) -> Iterator[Change]:
    """A line of kind train."""
    for key, name in OF_A_STEP.items():
        if row.get(key) is not None:
            yield change(name, row[key])
    if row["oldest_sample"] == 0:
        yield change("first_log_ratio", row["first_log_ratio"])
    for reward, mean in {"reward": row["reward_mean"], **row["rewards"]}.items():
        yield change("reward", mean, reward=reward)
        yield change("mean_missing", math.isnan(mean), reward=reward, purpose="train")
    columns = row["per_timestep"]
    for key, name in PER_TIMESTEP.items():
        for timestep, value in zip(columns["timestep"], columns[key], strict=True):
            if value is not None:
                yield change(name, value, timestep=f"{timestep:g}")
    for statistic, value in row.get("importance", {}).items():
        yield change("importance", value, statistic=statistic)
    yield change("skipped_gradients", row["skipped_gradients"])
    yield change("updates", 1)
    yield change("step_seconds", row["seconds"])
    yield change("samples", row["samples"] / row["step"], purpose="train")
    yield change("publish_lag_seconds", row["publish_lag"]["seconds"])
    yield change("versions_used", row["publish_lag"]["versions"])
    yield from _times(row["phase_seconds"], row["busy_seconds"], row["workers"])


def of_evaluation(row: Mapping[str, Any]) -> Iterator[Change]:
    """A line of kind evaluation."""
    for reward, found in row["rewards"].items():
        yield change("evaluation_score", _number(found["mean"]), reward=reward)
        yield change("evaluation_score_low", _number(found["low"]), reward=reward)
        yield change("evaluation_score_high", _number(found["high"]), reward=reward)
        yield change("mean_missing", math.isnan(_number(found["mean"])), reward=reward, purpose="evaluate")
    for reward, found in row.get("train_rewards", {}).items():
        yield change("train_prompts", _number(found["mean"]), reward=reward)
    for measure, value in row.get("quality", {}).items():
        yield change("quality", _number(value), measure=measure)
    for monitor in MONITORS:
        yield change("alarm", monitor in row["alarms"], monitor=monitor)
    yield change("evaluations", 1)
    yield change("samples", row["images"], purpose="evaluate")
    yield from _times({"evaluate": row["seconds"]}, row["busy_seconds"], row["workers"])


def _number(value: float | None) -> float:
    """A gauge's value: what was recorded as null is NaN to Prometheus."""
    return math.nan if value is None else value


def of_event(kind: str, details: Mapping[str, Any]) -> Iterator[Change]:
    """A line of events.jsonl; most kinds change nothing."""
    match kind:
        case "published":
            what = "average" if details["averaged"] else "weights"
            yield change("publishes", 1, kind=what)
            yield change("publish_seconds", details["seconds"], kind=what)
            yield change("publish_bytes", details["bytes"], kind=what)
        case "resized":
            for role in details.keys() & {"samplers", "scorers"}:
                yield change("resizes", 1, role=role, why=details["why"])
        case "fault" if "restarted" in details:
            yield change("restarts", 1, role=details["restarted"], cause="died")
        case "checkpoint":
            yield change("checkpoints", 1)
            yield change("phase_seconds", details["seconds"], phase="checkpoint")


def of_status(standing: RunNumbers, seen: Mapping[tuple[str, ...], int]) -> Iterator[Change]:
    """How a run is; what it counts from its start grows by what was not `seen` (`totals` of the one before)."""
    for name in ("step", "steps", "max_staleness", "in_flight"):
        yield change(name, getattr(standing, name))
    for role, size in standing.pools.items():
        yield change("workers_wanted", size.wanted, role=role)
        yield change("workers_ready", size.ready, role=role)
    for key, count in totals(standing).items():
        name, *values = key
        labels = dict(zip(BY_NAME[name].labels, values, strict=True))
        yield change(name, count - seen.get(key, 0), **labels)


def totals(standing: RunNumbers) -> dict[tuple[str, ...], int]:
    """What is counted from a run's start: by metric and its labels' values."""
    found: dict[tuple[str, ...], int] = {}

    def add(count: int, *key: str) -> None:
        found[key] = found.get(key, 0) + count

    for role, outcomes in (*standing.tasks.items(), *((role, size.setbacks) for role, size in standing.pools.items())):
        for outcome, reasons in outcomes.items():
            for reason, count in reasons.items():
                add(count, "tasks", role, outcome, reason)
    for role, size in standing.pools.items():
        for cause, count in size.losses.items():
            add(count, "restarts", role, cause)
    return found


def of_phase(phase: str) -> Iterator[Change]:
    """One phase is on, the others off."""
    for name in PHASES:
        yield change("phase", float(name == phase), phase=name)


def _times(
    wall: Mapping[str, float], busy: Mapping[str, Mapping[str, float]], workers: Mapping[str, int]
) -> Iterator[Change]:
    for phase, seconds in wall.items():
        yield change("phase_seconds", seconds, phase=phase)
    for role, phases in busy.items():
        for phase, seconds in phases.items():
            yield change("busy_seconds", seconds, role=role, phase=phase)
    for role, phases in idle_seconds(wall, busy, workers).items():
        for phase, seconds in phases.items():
            yield change("idle_seconds", seconds, role=role, phase=phase)


def idle_seconds(
    wall: Mapping[str, float], busy: Mapping[str, Mapping[str, float]], workers: Mapping[str, int]
) -> dict[str, dict[str, float]]:
    """Each role's seconds without work: workers x phase less what they worked in it.

    Work counts where it ends. What is more than a phase has seconds for was begun in the others: it is taken from
    theirs in proportion, so that all phases together are workers x seconds less busy seconds, or 0.
    """
    found = {}
    for role, count in {**workers, **LEARNER}.items():
        worked = busy.get(role, {})
        left = {phase: count * seconds - worked.get(phase, 0.0) for phase, seconds in wall.items()}
        idle = {phase: max(0.0, seconds) for phase, seconds in left.items()}
        over = sum(idle.values()) - max(0.0, sum(left.values()))
        scale = 1 - over / sum(idle.values()) if over else 1.0
        found[role] = {phase: seconds * scale for phase, seconds in idle.items()}
    return found
