"""Records: the typed rows that a run writes down (steps, evaluations, events) and the status that it gives.

`row` makes plain data for JSON. Standard library only: status readers and exporters import this at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Literal


@dataclass(frozen=True, kw_only=True)
class Record:
    """A line of metrics.jsonl. A field whose default is None is left out of the row while it is None."""

    kind: ClassVar[str]
    step: int

    def row(self, time: float) -> dict[str, Any]:
        """The line, written at `time` (seconds since 1970)."""
        return {"kind": self.kind, "step": self.step, "time": time, **self.values()}

    def values(self) -> dict[str, Any]:
        """Everything in the line but its kind, step and time."""
        absent = {f.name for f in fields(self) if f.default is None and getattr(self, f.name) is None}
        return {name: value for name, value in asdict(self).items() if name != "step" and name not in absent}


@dataclass(frozen=True, kw_only=True)
class StepRecord(Record):
    """A training step: its scores, its update, and where its time went.

    Times are seconds; `phase_seconds` are the driver's by phase, `busy_seconds` the workers' by role and phase.
    `sample_age` and `oldest_sample` count the versions between sampling and learning, mean and maximum.
    """

    kind = "train"

    # scores and advantages
    reward_mean: float
    reward_std: float
    group_deviation: float | None
    """Mean over the groups of the std within a group; None where a group has one image."""
    rewards: Mapping[str, float]
    advantage_abs_mean: float
    degenerate_groups: int
    rounding_groups: int
    dropped_groups: int
    # the update
    version: int
    sample_age: float
    oldest_sample: int
    first_log_ratio: float
    loss: float
    kl: float | None = None
    learning_rate: float
    gradient_norm: float
    skipped_gradients: int
    update_ratio: float
    moved_fraction: float
    importance: Mapping[str, float] | None = None
    mismatch: Mapping[str, float] | None = None
    """The rms and largest log-ratio of the learner's predictions to the sampler's, where both had the same weights."""
    ratio_mean: float | None
    centred_ratio_mean: float | None
    ratio_std: float | None
    log_ratio_std: float | None
    max_log_ratio: float | None
    clip_fraction: float | None
    inactive_fraction: float | None
    per_timestep: Mapping[str, Sequence[Any]]
    """Columns with one value a timestep; `timestep` names them, None stands where nothing was trained."""
    # time and workers
    seconds: float
    samples_per_second: float
    samples: int
    """Images since the start of the run."""
    phase_seconds: Mapping[str, float]
    busy_seconds: Mapping[str, Mapping[str, float]]
    lent_seconds: float | None = None
    """Seconds that the learner's ranks sampled, all together; a rank's share is in the learner's busy seconds."""
    workers: Mapping[str, int]
    tokens: Mapping[str, Mapping[str, int]] | None = None
    """Tokens that judges used since the line before, by reward and kind (prompt, completion)."""
    publish_lag: Mapping[str, float]
    sampler_behind: int
    buffer_bytes: int
    idle: Mapping[str, float]

    @property
    def all_rewards(self) -> dict[str, float]:
        """The mean of each reward, and of their weighted sum as `reward`."""
        return {"reward": self.reward_mean, **self.rewards}

    @property
    def fresh_log_ratio(self) -> float | None:
        """The first log-ratio where the batch was sampled with the weights that it updates; else None."""
        return self.first_log_ratio if self.oldest_sample == 0 else None

    @property
    def mismatch_by_timestep(self) -> dict[str, float | None] | None:
        """The rms mismatch by a timestep's label; None if it was not measured."""
        return self.by_timestep.get("mismatch")

    @property
    def by_timestep(self) -> dict[str, dict[str, Any]]:
        """`per_timestep` as a mapping from a timestep's label to its value, column by column."""
        labels = [f"{timestep:g}" for timestep in self.per_timestep["timestep"]]
        return {
            name: dict(zip(labels, column, strict=True))
            for name, column in self.per_timestep.items()
            if name != "timestep"
        }


@dataclass(frozen=True, kw_only=True)
class EvaluationRecord(Record):
    """An evaluation: means and intervals by reward, quality, changes since the first one, and alarms."""

    kind = "evaluation"

    prompts: int
    rewards: Mapping[str, Mapping[str, float | None]]
    scored: Mapping[str, int] | None = None
    """The number of images that have a score, by reward, where some have none."""
    train_rewards: Mapping[str, Mapping[str, float | None]] | None = None
    quality: Mapping[str, Any] | None = None
    changes: Mapping[str, Mapping[str, float | None]] | None = None
    """Changes of each reward since the evaluation of step 0; absent from that one."""
    alarms: Mapping[str, str]
    images: int
    seconds: float
    tokens: Mapping[str, Mapping[str, int]] | None = None
    """Tokens that judges used since the line before, by reward and kind (prompt, completion)."""
    busy_seconds: Mapping[str, Mapping[str, float]]
    workers: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Event:
    """A line of events.jsonl: a fault, a new version, an ending; `details` depend on the kind."""

    time: float
    kind: str
    details: Mapping[str, Any]

    def row(self) -> dict[str, Any]:
        """The line."""
        return {"time": self.time, "kind": self.kind, **self.details}


@dataclass(frozen=True, kw_only=True)
class PoolStatus:
    """A pool's size: how many workers are wanted and how many are ready, with the names of these.

    `lent` ranks of the learner work beside them at the moment, and are among the names.
    `restarts` counts replaced workers by cause. `retries` counts tasks that were `lost` or `hedged`, by cause. Both
    count from the start of the run. `unplaced` workers were asked for and have no process yet; `room` says what the
    cluster has room for while they wait.
    """

    wanted: int
    ready: int
    lent: int = 0
    workers: tuple[str, ...] = ()
    unplaced: int = 0
    room: str = ""
    restarts: Mapping[str, int] = field(default_factory=dict)
    retries: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """Plain data. Scripts that read `pcpo-ray status --json` know the counts as `losses` and `setbacks`."""
        return {
            "wanted": self.wanted,
            "ready": self.ready,
            "lent": self.lent,
            "workers": self.workers,
            "unplaced": self.unplaced,
            "room": self.room,
            "losses": dict(self.restarts),
            "setbacks": {outcome: dict(causes) for outcome, causes in self.retries.items()},
        }


State = Literal["starting", "training", "evaluating", "stopping", "finished", "stopped", "failed"]
"""The state of a run; `pcpo_ray.data.requests.ENDED` names the last ones."""


@dataclass(frozen=True, kw_only=True)
class StartingStatus:
    """The status of a run whose workers are being started; `waiting` says what the run waits for."""

    run: str
    state: State = "starting"
    step: int = 0
    steps: int
    waiting: str
    samplers: PoolStatus
    scorers: PoolStatus

    def row(self) -> dict[str, Any]:
        """Plain data, as `pcpo-ray status --json` prints it."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**values, "samplers": self.samplers.row(), "scorers": self.scorers.row()}


@dataclass(frozen=True, kw_only=True)
class RunStatus(StartingStatus):
    """The status of a run that goes on or has ended.

    `reward`, `reward_std`, `seconds`, `samples_per_second`, `idle` and `sample_age` are the last step's. `evaluated`
    holds the means of the last evaluation, and `change` how its reward has changed since the first one. `ages` counts
    the groups begun and not learned by how many versions behind the newest weights they are sampled. `versions` are
    what each sampler last sampled with (None: nothing yet).
    `done` are the requests carried out last.
    """

    error: str
    reward: float | None
    reward_std: float | None
    evaluated: Mapping[str, float | None]
    evaluated_step: int | None
    change: Mapping[str, float | None] | None
    seconds: float | None
    samples_per_second: float | None
    idle: Mapping[str, float]
    sample_age: float | None
    ages: Mapping[int, int]
    max_staleness: int
    in_flight: int
    learners_lost: int
    checkpoint: str | None
    folder: str
    events: Sequence[Mapping[str, Any]]
    done: Sequence[str]
    versions: Mapping[str, int | None]

    def row(self) -> dict[str, Any]:
        """Plain data, as `pcpo-ray status --json` prints it."""
        row = super().row()
        versions = row.pop("versions")
        return {**row, "samplers": {**row["samplers"], "versions": versions}}
