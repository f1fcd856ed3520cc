"""The alert rules: when a run needs someone, and what that someone does."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pcpo_ray.metrics.dashboards.query import conditions, series


@dataclass(frozen=True, kw_only=True)
class Alert:
    """Fires when `value` has been `beyond` (a comparison) for `lasting`.

    `summary` and `todo` may hold Prometheus' {{ $labels.run }} and {{ $value }}; `when` is what must be so, beside what
    the metrics' own entries say, for `value` to have data.
    """

    name: str
    value: str
    beyond: str
    lasting: str
    severity: Literal["critical", "warning"]
    summary: str
    todo: str
    when: str = ""

    @property
    def expr(self) -> str:
        """True where there is something to tell."""
        return f"{self.value} {self.beyond}".strip()

    @property
    def limit(self) -> float:
        """The number of `beyond`, for the panels that draw it. Raises ValueError where the rule has none."""
        return float(self.beyond[1:])

    @property
    def below(self) -> bool:
        """True where it fires below the limit, not above it."""
        return self.beyond.startswith("<")

    @property
    def conditions(self) -> list[str]:
        """The conditions under which `value` has data."""
        return [text for text in (*dict.fromkeys(conditions(self.value)), self.when) if text]


def _now(name: str, *by: str, **labels: str) -> str:
    return f"max by ({', '.join(('run', *by))}) ({series(name, chosen='', **labels)})"


def _highest(name: str, back: str, **labels: str) -> str:
    return f"max by (run) (max_over_time({series(name, chosen='', **labels)}[{back}]))"


def _grown(counted: str, back: str, *by: str) -> str:
    """By how much a counter grew. Not `increase`: Ray shows a counter first at its first event, which is no growth."""
    total = f"sum by ({', '.join(('run', *by))}) ({counted}"
    return f"({total}) - ({total} offset {back}) or {total}) * 0))"


def _seen(name: str, *by: str) -> str:
    """A metric as it was last seen in `MEMORY`, whether or not the process that told it still lives."""
    return f"max by ({', '.join(('run', *by))}) (max_over_time({series(name, chosen='')}[{MEMORY}]))"


MEMORY = "1h"
"""The time for which a run that has vanished is remembered, and its alert fires.

A dead process tells nothing: only Prometheus' own past does.
"""

LOST = f"max by (run) ({_seen('started_seconds', 'driver')} unless on (run, driver) {_seen('runs_ended', 'driver')})"
"""The start of the newest driver that did not say that it ended."""

VANISHED = f"({LOST} == {_seen('started_seconds')}) unless on (run) {_now('started_seconds')}"
"""Runs whose newest driver did not end on purpose, and is not there. A resumed run has a newer driver."""

_ENDED = series("runs_ended", chosen="", how="failed")
FAILED = (
    f"sum by (run) (max by (run, driver) (max_over_time({_ENDED}[15m])) unless on (run, driver) "
    f"max by (run, driver) ({_ENDED} offset 15m)) unless on (run) {_now('started_seconds')}"
)
"""Runs with a driver that failed in the last 15 minutes, and that nobody has resumed."""

DONE = series("tasks", chosen="", outcome="done")
SCORED = series("tasks", chosen="", role="scorers")
MISSING = series("tasks", chosen="", role="scorers", outcome="missing")
RESTARTS = series("restarts", chosen="")

ALERTS = (
    Alert(
        name="PcpoRunVanished",
        value=VANISHED,
        beyond="",
        lasting="2m",
        severity="critical",
        summary="{{ $labels.run }} is gone: its driver has told nothing for 2 minutes, and did not say that it ended.",
        todo="The driver was killed (out of memory, kill -9, a lost node), or Prometheus cannot reach it any more. "
        "`pcpo-ray status` says which; the same `train --resume` or `submit` goes on from the newest checkpoint.",
        when="a run vanished",
    ),
    Alert(
        name="PcpoRunFailed",
        value=FAILED,
        beyond="",
        lasting="0m",
        severity="critical",
        summary="{{ $labels.run }} has failed.",
        todo="The command's last line and the event `failed` in events.jsonl say why. What was learned so far is in "
        "the newest checkpoint; fix the cause and continue with --resume.",
        when="a run failed",
    ),
    Alert(
        name="PcpoNoProgress",
        value=f"({_now('step')} < {_now('steps')}) unless on (run) sum by (run) (increase({DONE}[15m])) > 0",
        beyond="",
        lasting="15m",
        severity="critical",
        summary="{{ $labels.run }} stands still at step {{ $value }}: no task was finished for half an hour.",
        todo="`pcpo-ray status` says what is in flight; look for samplers that never got ready (Cluster: Workers) and "
        "for a learner that hangs (Ray's dashboard: stack traces). workers.task_timeout ends such a run by itself.",
        when="the run stands still",
    ),
    Alert(
        name="PcpoFirstRatioNotOne",
        value=_now("first_log_ratio"),
        beyond="> 1e-7",
        lasting="0m",
        severity="critical",
        summary="{{ $labels.run }}: before any update the log-ratio is {{ $value }}, not 0.",
        todo="Sampler and learner do not compute the same prediction: give both the same dtype, sampling.batch and "
        "kernels, or set model.dtype=float32. At 1e-6 the run stops by itself and names the timestep.",
    ),
    Alert(
        name="PcpoClipFractionHigh",
        value=_now("clip_fraction"),
        beyond="> 0.5",
        lasting="15m",
        severity="warning",
        summary="{{ $labels.run }}: {{ $value | humanizePercentage }} of all pairs are beyond the clip range.",
        todo="Lower optimizer.learning_rate, optimizer.minibatches or epochs, or widen objective.clip_range. If it is "
        "high at some timesteps only (Training: By timestep), credit is uneven: see credit.kind and "
        "objective.clip_scale.",
    ),
    Alert(
        name="PcpoWeightsDoNotMove",
        value=_now("moved_fraction"),
        beyond="< 0.01",
        lasting="5m",
        severity="critical",
        summary="{{ $labels.run }}: a step changed {{ $value | humanizePercentage }} of the trained weights.",
        todo="Nothing is trained: scores within groups are equal, all pairs are clipped, or optimizer.learning_rate is "
        "below what float32 can add. After 10 steps without movement the run stops by itself and says which it is.",
    ),
    Alert(
        name="PcpoGradientsSkipped",
        value=_grown(series("skipped_gradients", chosen=""), "15m"),
        beyond="> 0",
        lasting="0m",
        severity="warning",
        summary="{{ $labels.run }}: {{ $value }} optimizer steps were skipped, as their gradient was not finite.",
        todo="One now and then costs a step. If they go on, lower optimizer.learning_rate or use a wider model.dtype; "
        "more than 3 in a row end the run.",
    ),
    Alert(
        name="PcpoRewardNotANumber",
        value=_now("mean_missing", "reward", "purpose"),
        beyond="> 0",
        lasting="0m",
        severity="critical",
        summary="{{ $labels.run }}: the mean of {{ $labels.reward }} is no number ({{ $labels.purpose }}).",
        todo="No image of a batch or an evaluation has a score of it: events.jsonl names the causes (missing_scores).",
    ),
    Alert(
        name="PcpoScoresMissing",
        value=f"{_grown(MISSING, '15m')} / {_grown(SCORED, '15m')}",
        beyond="> 0.05",
        lasting="5m",
        severity="warning",
        summary="{{ $labels.run }}: {{ $value | humanizePercentage }} of the groups miss a score.",
        todo="Their groups are dropped whole. The label reason of ray_pcpo_tasks_total names the rewards, events.jsonl "
        "the causes; a remote reward may be down or slow. More than rollout.reward_failures in a row end the run.",
        when="a score was missing",
    ),
    Alert(
        name="PcpoAlarm",
        value=_now("alarm", "monitor"),
        beyond="> 0",
        lasting="0m",
        severity="warning",
        summary="{{ $labels.run }}: the monitor `{{ $labels.monitor }}` sounds the alarm.",
        todo="events.jsonl has its numbers (alarm), report.html the images. monitors.action says what the run does: "
        "warn, stop or roll_back. Begin again from an earlier checkpoint with a lower learning rate or objective.kl.",
    ),
    Alert(
        name="PcpoGroupDeviationCollapsed",
        value=f"{_now('group_deviation')} / {_highest('group_deviation', '6h')}",
        beyond="< 0.1",
        lasting="15m",
        severity="warning",
        summary="{{ $labels.run }}: rewards within a group deviate {{ $value | humanizePercentage }} of their most.",
        todo="The images of a prompt have become alike in the reward's eyes: there is nothing left to learn, or the "
        "policy has collapsed. Look at the images in report.html and at evaluated diversity; go back to an earlier "
        "checkpoint, add objective.kl, or stop.",
    ),
    Alert(
        name="PcpoDiversityFalling",
        value=f"{_now('evaluation_score', reward='diversity')} / "
        f"{_highest('evaluation_score', '1d', reward='diversity')}",
        beyond="< 0.8",
        lasting="0m",
        severity="warning",
        summary="{{ $labels.run }}: evaluated diversity is {{ $value | humanizePercentage }} of its highest in a day.",
        todo="The reward may be being hacked: compare the evaluation's other rewards and images; add objective.kl, "
        "lower the learning rate, or stop at an earlier checkpoint.",
        when="evaluation.rewards has diversity",
    ),
    Alert(
        name="PcpoSamplerBehind",
        value=f"{_now('sampler_behind')} - {_now('max_staleness')}",
        beyond="> 3",
        lasting="10m",
        severity="warning",
        summary="{{ $labels.run }}: a sampler has not sampled for {{ $value }} versions more than it may.",
        todo="It hangs or is slow (its tasks are done by others meanwhile), or there are more samplers than groups: "
        "look at its log and node in Ray's dashboard, or have fewer samplers.",
    ),
    Alert(
        name="PcpoRestarts",
        value=_grown(RESTARTS, "15m", "role"),
        beyond="> 2",
        lasting="0m",
        severity="warning",
        summary="{{ $labels.run }}: {{ $value }} {{ $labels.role }} were replaced in 15 minutes.",
        todo="Workers are replaced and their work done again, so results are the same, but slower. The label cause and "
        "events.jsonl say why; out of memory shows in the node's log and in Ray's dashboard.",
    ),
    Alert(
        name="PcpoSpilling",
        value='sum by (SessionName) (ray_object_store_memory{Location="SPILLED"})',
        beyond="> 0",
        lasting="5m",
        severity="warning",
        summary="{{ $labels.SessionName }}: the object store has spilled {{ $value | humanize1024 }}B to disk.",
        todo="Trajectories and images do not fit: give Ray more object store memory (and /dev/shm), or lower "
        "rollout.prompts, rollout.images or rollout.max_staleness.",
        when="the run is on Ray",
    ),
)

BY_NAME = {alert.name: alert for alert in ALERTS}


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A series that Prometheus works out as it goes, for whoever compares runs or writes rules of their own."""

    name: str
    expr: str
    text: str


RECORDED = (
    Recorded(
        name="run:pcpo_step_seconds:mean5m",
        expr=f"sum by (run) (rate({series('step_seconds', chosen='')}[5m])) / "
        f"sum by (run) (rate({series('updates', chosen='')}[5m]))",
        text="Seconds a step, sampling and scoring included: mean over 5 minutes.",
    ),
)

HEAD = "# Made by `python -m pcpo_ray.metrics.dashboards`; deploy/METRICS.md explains each.\n"


def rules() -> str:
    """The file that Prometheus loads."""
    import yaml

    groups = {"groups": [{"name": "pcpo_ray", "interval": "15s", "rules": list(_rules())}]}
    return HEAD + yaml.safe_dump(groups, sort_keys=False, width=110, allow_unicode=True)


def _rules() -> Iterator[dict[str, Any]]:
    for one in RECORDED:
        yield {"record": one.name, "expr": one.expr}
    for alert in ALERTS:
        yield {
            "alert": alert.name,
            "expr": alert.expr,
            "for": alert.lasting,
            "labels": {"severity": alert.severity},
            "annotations": {"summary": alert.summary, "description": alert.todo},
        }
