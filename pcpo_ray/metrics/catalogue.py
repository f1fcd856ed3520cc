"""The one catalogue of metrics: what a run tells Prometheus, on Ray and in one process, under the same names.

Both exporters (cluster/exporter.py, prometheus.py), the Grafana dashboards, the alert rules and their page
(dashboards/) are made from it. Every metric also has the label `run`, the run's name. The driver keeps all of them.
A mean is a counter of seconds over a counter of events; there is no histogram, as Ray's sums of them are approximate.

To add a metric: one entry here that names the record's field (data/records.py), and one chart in dashboards/. The file
is as long as there are metrics.
"""

from dataclasses import dataclass
from typing import Literal, get_args

PREFIX = "ray_"
"""The prefix that Ray puts before every name; in one process the exporter adds it, so that one dashboard reads both."""

Unit = Literal[
    "", "seconds", "bytes", "fraction", "versions", "steps", "images", "groups", "workers", "tasks", "tokens"
]
"""The unit of a metric's value; a fraction is between 0 and 1."""

Phase = Literal["sample_and_score", "learn", "publish", "evaluate", "checkpoint"]
"""The phases that a driver may be in."""

PHASES: tuple[Phase, ...] = get_args(Phase)

MONITORS = ("diversity", "deviation", "reward", "hacking")
"""The monitors that may sound the alarm (training/monitors.py)."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One entry.

    `field` is a path into a record: its name (step, evaluation, status), then attributes and keys. A `*` stands for
    every key, which becomes the value of the next label. Entries without a field are worked out in changes.py.
    `when` says what a run must be or have met for the metric to arrive; empty: it always does.
    """

    name: str
    kind: Literal["counter", "gauge"]
    unit: Unit
    labels: tuple[str, ...]
    help: str
    field: str = ""
    when: str = ""

    @property
    def scraped(self) -> str:
        """The metric's name in Prometheus."""
        return f"{PREFIX}{self.name}" + ("_total" if self.kind == "counter" else "")


def _gauge(name: str, unit: Unit, text: str, *labels: str, field: str = "", when: str = "") -> Metric:
    return Metric(name=f"pcpo_{name}", kind="gauge", unit=unit, labels=labels, help=text, field=field, when=when)


def _counter(name: str, unit: Unit, text: str, *labels: str, field: str = "", when: str = "") -> Metric:
    return Metric(name=f"pcpo_{name}", kind="counter", unit=unit, labels=labels, help=text, field=field, when=when)


MISMATCH = "objective.old_predictions is recomputed and the last batch was sampled with the weights it updates"
"""The condition under which the mismatch of sampler and learner arrives."""

# -- is it learning ----------------------------------------------------------------------------------------------------

LEARNING = (
    _gauge("step", "steps", "Updates done: the version of the newest weights.", field="status.step"),
    _gauge("steps", "steps", "Updates the run is to do.", field="status.steps"),
    _gauge(
        "reward",
        "",
        "Mean of the last batch's scores; `reward` is the weighted sum of all rewards.",
        "reward",
        field="step.all_rewards.*",
    ),
    _gauge("reward_deviation", "", "Standard deviation of the last batch's weighted sums.", field="step.reward_std"),
    _gauge(
        "group_deviation",
        "",
        "Standard deviation of the weighted sum within a prompt's group, mean over the groups.",
        field="step.group_deviation",
        when="rollout.images is at least 2",
    ),
    _gauge(
        "degenerate_groups",
        "groups",
        "Groups of the last batch with equal scores: nothing is learned from them.",
        field="step.degenerate_groups",
    ),
    _gauge(
        "rounding_groups",
        "groups",
        "Groups of the last batch whose scores differ by rounding only.",
        field="step.rounding_groups",
    ),
    _gauge("advantage_magnitude", "", "Mean of the last batch's |advantage|.", field="step.advantage_abs_mean"),
    _gauge(
        "evaluation_score",
        "",
        "Mean score on the evaluation's prompts, in the last one.",
        "reward",
        field="evaluation.rewards.*.mean",
    ),
    _gauge("evaluation_score_low", "", "Lower end of its 95% interval.", "reward", field="evaluation.rewards.*.low"),
    _gauge("evaluation_score_high", "", "Upper end of its 95% interval.", "reward", field="evaluation.rewards.*.high"),
    _gauge(
        "evaluation_change",
        "",
        "Mean change of a score since the first evaluation, at the same prompts and noise.",
        "reward",
        field="evaluation.changes.*.mean",
        when="there were two evaluations",
    ),
    _gauge(
        "train_prompts",
        "",
        "Mean score on training prompts in the last evaluation.",
        "reward",
        field="evaluation.train_rewards.*.mean",
        when="evaluation.train_count is above 0",
    ),
    _gauge(
        "quality",
        "",
        "Frechet distance, diversity and the like of the last evaluation's images.",
        "measure",
        field="evaluation.quality.*",
        when="evaluation.quality is given",
    ),
    _gauge(
        "alarm", "", "1 for a monitor that sounds the alarm (diversity, deviation, reward, hacking); else 0.", "monitor"
    ),
    _counter("evaluations", "", "Evaluations done."),
    _gauge(
        "mean_missing",
        "",
        "1 for a reward of which the last batch, or evaluation, has no score; else 0.",
        "reward",
        "purpose",
    ),
)

# -- is it healthy -----------------------------------------------------------------------------------------------------

HEALTH = (
    _gauge("loss", "", "Loss of the last update.", field="step.loss"),
    _gauge("kl", "", "KL divergence from the reference model.", field="step.kl", when="objective.kl is above 0"),
    _gauge("learning_rate", "", "Learning rate of the last update.", field="step.learning_rate"),
    _gauge(
        "gradient_norm", "", "L2 norm of the last update's gradient, before it is clipped.", field="step.gradient_norm"
    ),
    _gauge(
        "update_ratio",
        "",
        "|update| / |weights| of the last step, both L2 norms over all trained weights.",
        field="step.update_ratio",
    ),
    _gauge(
        "moved_fraction",
        "",
        "Fraction of the trained weights whose bits the last step changed; near 0, nothing is trained.",
        field="step.moved_fraction",
    ),
    _counter(
        "skipped_gradients",
        "steps",
        "Optimizer steps skipped, as their gradient was not finite.",
        field="step.skipped_gradients",
        when="a gradient was skipped",
    ),
    _gauge(
        "importance",
        "",
        "Importance weights of groups that older weights or another computation sampled: their mean, std, truncated "
        "fraction and effective fraction.",
        "statistic",
        field="step.importance.*",
        when="objective.correction is given and the last batch had older groups, or objective.old_predictions is "
        "recomputed",
    ),
    _gauge(
        "mismatch",
        "",
        "Log-ratio of the learner's predictions to the sampler's at the same weights: its rms over pairs, and the "
        "largest.",
        "statistic",
        field="step.mismatch.*",
        when=MISMATCH,
    ),
    _gauge(
        "ratio_mean",
        "",
        "Mean ratio of new to old density, over images and trained timesteps.",
        field="step.ratio_mean",
    ),
    _gauge("ratio_deviation", "", "Standard deviation of the ratio.", field="step.ratio_std"),
    _gauge("log_ratio_deviation", "", "Standard deviation of the log-ratio.", field="step.log_ratio_std"),
    _gauge("log_ratio_max", "", "Largest |log-ratio| of the last update.", field="step.max_log_ratio"),
    _gauge(
        "first_log_ratio",
        "",
        "Largest |log-ratio| before the weights moved: 0, or sampler and learner disagree.",
        field="step.fresh_log_ratio",
        when="a batch was sampled with the weights it updates: rollout.max_staleness is 0, or it is the first",
    ),
    _gauge(
        "clip_fraction",
        "fraction",
        "Fraction of (image, timestep) pairs whose log-ratio is beyond the clip range.",
        field="step.clip_fraction",
    ),
    _gauge(
        "inactive_fraction",
        "fraction",
        "Fraction whose gradient the clip range cuts off.",
        field="step.inactive_fraction",
    ),
    _gauge(
        "timestep_clip_fraction",
        "fraction",
        "Clip fraction at one timestep.",
        "timestep",
        field="step.by_timestep.clip_fraction.*",
    ),
    _gauge(
        "timestep_inactive_fraction",
        "fraction",
        "Fraction whose gradient is cut off at one timestep.",
        "timestep",
        field="step.by_timestep.inactive_fraction.*",
    ),
    _gauge("timestep_ratio_mean", "", "Mean ratio at one timestep.", "timestep", field="step.by_timestep.ratio_mean.*"),
    _gauge(
        "timestep_log_ratio_deviation",
        "",
        "Standard deviation of the log-ratio at one timestep.",
        "timestep",
        field="step.by_timestep.log_ratio_std.*",
    ),
    _gauge(
        "timestep_log_ratio_max",
        "",
        "Largest |log-ratio| at one timestep.",
        "timestep",
        field="step.by_timestep.max_log_ratio.*",
    ),
    _gauge(
        "timestep_mismatch",
        "",
        "Rms log-ratio of the learner's predictions to the sampler's at one timestep.",
        "timestep",
        field="step.mismatch_by_timestep.*",
        when=MISMATCH,
    ),
    _gauge(
        "timestep_gradient_share",
        "fraction",
        "A timestep's part of all gradient norms.",
        "timestep",
        field="step.by_timestep.gradient_share.*",
    ),
    _gauge(
        "timestep_credit_weight",
        "",
        "Weight that the log-ratio of a timestep carries in the loss.",
        "timestep",
        field="step.by_timestep.credit_weight.*",
    ),
    _gauge(
        "timestep_outside_weight",
        "",
        "Factor of a timestep's loss, outside the clip.",
        "timestep",
        field="step.by_timestep.outside_weight.*",
    ),
    _gauge(
        "timestep_native_weight",
        "",
        "Weight that the sampler itself gives a timestep.",
        "timestep",
        field="step.by_timestep.native_weight.*",
    ),
)

# -- where time goes ---------------------------------------------------------------------------------------------------

TIME = (
    _counter("updates", "steps", "Updates done by this driver, those done again after a loss included."),
    _counter(
        "step_seconds", "seconds", "Seconds of these updates, sampling and scoring included.", field="step.seconds"
    ),
    _counter("samples", "images", "Images sampled and scored, by what for (train, evaluate).", "purpose"),
    _counter("judge_tokens", "tokens", "Tokens that judges read and wrote.", "reward", "kind", when="a judge is asked"),
    _gauge("phase", "", "1 for the phase that the driver is in, 0 for the others.", "phase"),
    _counter("phase_seconds", "seconds", "Seconds that the driver spent in each phase.", "phase"),
    _counter(
        "busy_seconds",
        "seconds",
        "Seconds that a role's workers worked, all together; the learner's ranks are one.",
        "role",
        "phase",
    ),
    _counter("idle_seconds", "seconds", "Seconds that a role's ready workers waited, all together.", "role", "phase"),
)

# -- versions ----------------------------------------------------------------------------------------------------------

VERSIONS = (
    _counter("publishes", "versions", "Times weights were sent out: weights, or their running average.", "kind"),
    _counter("publish_seconds", "seconds", "Seconds until they could be loaded.", "kind"),
    _counter("publish_bytes", "bytes", "Bytes sent out.", "kind"),
    _counter(
        "publish_lag_seconds",
        "seconds",
        "Seconds that versions lay unused, until a sampler began with them.",
        field="step.publish_lag.seconds",
    ),
    _counter("versions_used", "versions", "Versions that a sampler has begun with.", field="step.publish_lag.versions"),
    _gauge(
        "sample_age",
        "versions",
        "How many versions older than the newest weights the last batch was, in mean.",
        field="step.sample_age",
    ),
    _gauge("sample_age_max", "versions", "The same, of the oldest group.", field="step.oldest_sample"),
    _gauge("max_staleness", "versions", "How old a batch may be.", field="status.max_staleness"),
    _gauge(
        "sampler_behind",
        "versions",
        "Versions since the sampler that was heard of least lately last sampled.",
        field="step.sampler_behind",
    ),
)

# -- the cluster -------------------------------------------------------------------------------------------------------

CLUSTER = (
    _counter(
        "tasks",
        "tasks",
        "Tasks (a group to sample or score, a batch to learn), by what came of them.",
        "role",
        "outcome",
        "reason",
    ),
    _gauge("workers_wanted", "workers", "Workers that a pool is to have.", "role", field="status.pools.*.wanted"),
    _gauge("workers_ready", "workers", "Workers that are at work.", "role", field="status.pools.*.ready"),
    _counter(
        "restarts", "workers", "Workers replaced, by what ended them.", "role", "cause", when="a worker was replaced"
    ),
    _counter("resizes", "", "Times a pool was given another size.", "role", "why", when="a pool was resized"),
    _gauge("in_flight", "groups", "Groups being sampled or scored.", field="status.in_flight"),
    _gauge(
        "buffer_bytes",
        "bytes",
        "The most that trajectories and images held in the last step, not yet learned.",
        field="step.buffer_bytes",
    ),
    _counter("checkpoints", "", "Checkpoints written."),
    _gauge("started_seconds", "seconds", "When a driver started or resumed the run, since 1970.", "driver"),
    _counter(
        "runs_ended",
        "",
        "1 for a driver that ended and said so, by how: finished, stopped, alarm, failed.",
        "driver",
        "how",
        when="a driver of the run has ended",
    ),
)

CATALOGUE = (*LEARNING, *HEALTH, *TIME, *VERSIONS, *CLUSTER)
BY_NAME = {metric.name.removeprefix("pcpo_"): metric for metric in CATALOGUE}

OUTCOMES = {
    "done": "finished",
    "missing": "scored, with a score missing; the reason names the rewards",
    "lost": "to be done again: its worker died, was silent or kept failing, or what it made is gone",
    "hedged": "given to a second worker as well, as the first was slow",
}
"""The outcomes of a task."""
