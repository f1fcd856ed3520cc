"""Changes of catalogued metrics, computed from what a run records: pure functions of records, events and the status."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pcpo_ray.data.records import EvaluationRecord, Event, PoolStatus, Record, StepRecord
from pcpo_ray.metrics.catalogue import BY_NAME, CATALOGUE, MONITORS, PHASES, Metric

LEARNER = {"learner": 1}


@dataclass(frozen=True)
class Change:
    """A gauge's new value, or the amount by which a counter grows. NaN removes a gauge, as Ray shows no NaN."""

    metric: Metric
    value: float
    labels: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class RunNumbers:
    """The numbers of a run's status. `tasks` (Counters.tasks) and the pools' counts are since the start of the run."""

    step: int
    steps: int
    max_staleness: int
    in_flight: int
    pools: Mapping[str, PoolStatus]
    tasks: Mapping[str, Mapping[str, Mapping[str, int]]]


def change(name: str, value: float, **labels: str) -> Change:
    """Make a change of the metric with that name. Raises ValueError where its labels are others."""
    metric = BY_NAME[name]
    if set(labels) != set(metric.labels):
        raise ValueError(f"{metric.name} has the labels {list(metric.labels)}; got {list(labels)}")
    return Change(metric, float(value), labels)


def of_record(record: Record) -> Iterator[Change]:
    """Yield the changes of a line of metrics.jsonl."""
    if isinstance(record, StepRecord):
        yield from _of_step(record)
    elif isinstance(record, EvaluationRecord):
        yield from _of_evaluation(record)


def _of_step(record: StepRecord) -> Iterator[Change]:
    for metric, labels, value in _fields("step", record):
        if value is not None:  # nothing was trained at this timestep, or the config has no such thing
            yield Change(metric, float(value), labels)
    for reward, mean in record.all_rewards.items():
        yield change("mean_missing", math.isnan(mean), reward=reward, purpose="train")
    yield from _tokens(record.tokens)
    yield change("updates", 1)
    yield change("samples", record.samples / record.step, purpose="train")
    yield from _times(record.phase_seconds, record.busy_seconds, record.workers)


def _of_evaluation(record: EvaluationRecord) -> Iterator[Change]:
    for metric, labels, value in _fields("evaluation", record):
        yield Change(metric, _number(value), labels)
    for reward, found in record.rewards.items():
        yield change("mean_missing", math.isnan(_number(found["mean"])), reward=reward, purpose="evaluate")
    for monitor in MONITORS:
        yield change("alarm", monitor in record.alarms, monitor=monitor)
    yield from _tokens(record.tokens)
    yield change("evaluations", 1)
    yield change("samples", record.images, purpose="evaluate")
    yield from _times({"evaluate": record.seconds}, record.busy_seconds, record.workers)


def _tokens(used: Mapping[str, Mapping[str, int]] | None) -> Iterator[Change]:
    """Yield what judges took; nothing without a judge."""
    for reward, kinds in (used or {}).items():
        for kind, tokens in kinds.items():
            yield change("judge_tokens", tokens, reward=reward, kind=kind)


def _number(value: float | None) -> float:
    """Convert to a gauge's value: what is recorded as null is NaN to Prometheus."""
    return math.nan if value is None else float(value)


def _fields(source: str, record: Any) -> Iterator[tuple[Metric, dict[str, str], float | None]]:
    """Yield (metric, labels, value) for every entry of the catalogue whose field lies in this record."""
    for metric in CATALOGUE:
        name, *path = metric.field.split(".")
        if name == source:
            for keys, value in _walk(record, path):
                yield metric, dict(zip(metric.labels, keys, strict=True)), value


def _walk(value: Any, path: list[str], keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], float | None]]:
    """Yield (the keys that `*` stood for, the value) for every value at a path; nothing below a None."""
    if not path:
        yield keys, value
        return
    if value is None:
        return
    head, *rest = path
    if head == "*":
        for key, item in value.items():
            yield from _walk(item, rest, (*keys, key))
    else:
        yield from _walk(value[head] if isinstance(value, Mapping) else getattr(value, head), rest, keys)


def of_event(event: Event, driver: str = "") -> Iterator[Change]:
    """Yield the changes of a line of events.jsonl; most kinds change nothing. `driver` names the process."""
    details = event.details
    match event.kind:
        case "started":
            yield change("started_seconds", event.time, driver=driver)
        case "finished" | "stopped" | "rolled_back" | "failed":
            how = "alarm" if "alarm" in details else event.kind
            yield change("runs_ended", 1, driver=driver, how=how)
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


def of_status(numbers: RunNumbers, seen: Mapping[tuple[str, ...], int]) -> Iterator[Change]:
    """Yield the changes of a status; counts since the start grow by what was not `seen` (`totals` of the last one)."""
    for metric, labels, value in _fields("status", numbers):
        yield Change(metric, _number(value), labels)
    for key, count in totals(numbers).items():
        name, *values = key
        labels = dict(zip(BY_NAME[name].labels, values, strict=True))
        yield change(name, count - seen.get(key, 0), **labels)


def totals(numbers: RunNumbers) -> dict[tuple[str, ...], int]:
    """Add up what is counted from the run's start, by metric and values of its labels."""
    found: dict[tuple[str, ...], int] = {}

    def add(count: int, *key: str) -> None:
        found[key] = found.get(key, 0) + count

    for role, outcomes in (*numbers.tasks.items(), *((role, pool.retries) for role, pool in numbers.pools.items())):
        for outcome, reasons in outcomes.items():
            for reason, count in reasons.items():
                add(count, "tasks", role, outcome, reason)
    for role, pool in numbers.pools.items():
        for cause, count in pool.restarts.items():
            add(count, "restarts", role, cause)
    return found


def of_phase(phase: str) -> Iterator[Change]:
    """Yield 1 for the phase that has begun and 0 for all others."""
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
    """Compute each role's seconds without work in each phase: workers x seconds less the seconds they worked.

    Work counts in the phase in which it ends. Work beyond a phase's own seconds was begun in other phases: it is taken
    from their idle time in proportion. All phases together are workers x seconds less busy seconds, or 0.
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
