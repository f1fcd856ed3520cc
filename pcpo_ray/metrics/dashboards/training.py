"""The dashboard `Training`: is the run learning, and is it healthy?"""

from pcpo_ray.metrics.dashboards.alerts import BY_NAME
from pcpo_ray.metrics.dashboards.grafana import Dashboard, Row, chart
from pcpo_ray.metrics.dashboards.query import CHOSEN, Query, count, gauge, rate, series

SHARE = {"unit": "percentunit", "ceiling": 1.0}
FREE = {"floor": None}
STAT = {"kind": "stat", "width": 4, "height": 4}

STEP_SECONDS = f"{rate('step_seconds')} / {rate('updates')}"

_REPLACED = f"sum by (run) ({series('restarts')}"
_FIRING = 'max by (alertname) (ALERTS{alertstate="firing",alertname=~"Pcpo.*",run=~"$run|"})'
_BUSY, _IDLE = rate("busy_seconds", "role"), rate("idle_seconds", "role")
_EACH = f'{CHOSEN},reward=~"$reward"'
_TRAINED = f'{CHOSEN},reward!="reward"'

GLANCE = Row(
    "At a glance",
    (
        chart(
            "State",
            "The phase that the run's driver is in.",
            Query(f"max by (run, phase) ({series('phase')} == 1)", "{{phase}}"),
            **STAT,
            names=True,
            nothing="gone",
        ),
        chart(
            "Change of the reward",
            "Of the evaluated weighted sum, since the first evaluation, at the same prompts and noise.",
            Query(gauge("evaluation_change", reward="reward"), "since the start"),
            **STAT,
            **FREE,
            nothing="not evaluated twice yet",
        ),
        chart(
            "Time left",
            "The steps left at the window's pace; evaluations come on top.",
            Query(f"({gauge('steps')} - {gauge('step')}) * ({STEP_SECONDS})", "left"),
            **STAT,
            unit="s",
        ),
        chart(
            "Alerts that fire",
            "Of deploy/prometheus/rules.yaml: about the run, or about its cluster.",
            Query(f"sum({_FIRING}) or vector(0)", "alerts"),
            **STAT,
            steps=((0, "green"), (1, "red")),
        ),
        chart(
            "Slowest role",
            "The role that waits least: the others wait for it.",
            Query(f"topk(1, {_BUSY} / ({_BUSY} + {_IDLE}))", "{{role}}"),
            **STAT,
            names=True,
        ),
        chart(
            "Workers replaced in 1 h",
            f"Red from {BY_NAME['PcpoRestarts'].limit + 1:g} on, the number at which alert PcpoRestarts fires if they "
            "are within 15 minutes.",
            Query(f"({_REPLACED}) - ({_REPLACED} offset 1h) or {_REPLACED}) * 0)) or vector(0)", "replaced"),
            **STAT,
            steps=((0, "green"), (1, "orange"), (BY_NAME["PcpoRestarts"].limit + 1, "red")),
        ),
        chart(
            "Which alerts",
            "Those that fire now.",
            Query(_FIRING, "{{alertname}}"),
            kind="stat",
            width=8,
            height=4,
            names=True,
            nothing="none",
            steps=((0, "red"),),
        ),
        chart("Step", "Updates done.", Query(gauge("step"), "step"), **STAT),
        chart(
            "Done",
            "Updates done, of those the run is to do.",
            Query(f"{gauge('step')} / {gauge('steps')}", "done"),
            **STAT,
            **SHARE,
        ),
        chart("Seconds a step", "Mean over the window.", Query(STEP_SECONDS, "a step"), **STAT, unit="s"),
        chart(
            "Started",
            "When the newest driver began or resumed the run.",
            Query(f"{gauge('started_seconds')} * 1000", "started"),
            **STAT,
            unit="dateTimeFromNow",
        ),
    ),
)

LEARNING = Row(
    "Is it learning",
    (
        chart(
            "Reward",
            "Mean score of each step's batch, and the weighted sum where several are trained on.",
            Query(f"max by (run, reward) ({series('reward', _TRAINED)})", "{{reward}}"),
            Query(
                f"{gauge('reward', reward='reward')} and on (run) "
                f"count by (run) (max by (run, reward) ({series('reward', _TRAINED)})) > 1",
                "weighted sum",
                "several rewards are trained on",
            ),
            **FREE,
        ),
        chart(
            "Evaluated: $reward",
            "Mean on the evaluation's prompts, with its 95% interval, at the same noise every time.",
            Query(f"max by (run, reward) ({series('evaluation_score_high', _EACH)})", "high"),
            Query(f"max by (run, reward) ({series('evaluation_score', _EACH)})", "mean"),
            Query(f"max by (run, reward) ({series('evaluation_score_low', _EACH)})", "low"),
            repeat="reward",
            **FREE,
        ),
        chart(
            "Std of the reward",
            "In the whole batch, and within a prompt's group in mean: what advantages are made of.",
            Query(gauge("reward_deviation"), "batch"),
            Query(gauge("group_deviation"), "within groups"),
        ),
        chart(
            "Groups with nothing to learn",
            "Groups of a batch whose images all have the same score.",
            Query(gauge("degenerate_groups"), "equal"),
            Query(gauge("rounding_groups"), "differ by rounding"),
        ),
        chart(
            "Rewards without a score",
            "1 for a reward of which a whole batch or evaluation has no score.",
            Query(gauge("mean_missing", "reward", "purpose"), "{{reward}}, {{purpose}}"),
            ceiling=1.0,
            alert="PcpoRewardNotANumber",
        ),
        chart("|Advantage|", "Its mean over the batch.", Query(gauge("advantage_magnitude"), "mean")),
    ),
)

HEALTH = Row(
    "Is it healthy",
    (
        chart(
            "Clip fraction",
            "Fraction of (image, timestep) pairs beyond the clip range, and of those left without a gradient by it.",
            Query(gauge("clip_fraction"), "beyond the range"),
            Query(gauge("inactive_fraction"), "without a gradient"),
            **SHARE,
            alert="PcpoClipFractionHigh",
        ),
        chart("Ratio", "Mean of new to old density.", Query(gauge("ratio_mean"), "mean"), **FREE),
        chart(
            "Spread of ratio and log-ratio",
            "Stds over a batch, and the largest |log-ratio|.",
            Query(gauge("ratio_deviation"), "std of the ratio"),
            Query(gauge("log_ratio_deviation"), "std of the log-ratio"),
            Query(gauge("log_ratio_max"), "largest |log-ratio|"),
        ),
        chart(
            "|Log-ratio| before the weights moved",
            "Must be 0: else sampler and learner compute different predictions.",
            Query(gauge("first_log_ratio"), "largest"),
            alert="PcpoFirstRatioNotOne",
        ),
        chart(
            "Loss",
            "Of each update; KL is what objective.kl multiplies.",
            Query(gauge("loss"), "loss"),
            Query(gauge("kl"), "KL"),
            **FREE,
        ),
        chart(
            "Learning rate",
            "That of each step, by optimizer.schedule and optimizer.warmup.",
            Query(gauge("learning_rate"), "rate"),
        ),
        chart("Gradient norm", "L2 norm before clipping.", Query(gauge("gradient_norm"), "norm")),
        chart(
            "Weights that moved",
            "Fraction of the trained weights whose bits a step changed. Near 0, nothing is trained.",
            Query(gauge("moved_fraction"), "moved"),
            unit="percentunit",
            alert="PcpoWeightsDoNotMove",
        ),
        chart(
            "Size of an update",
            "|update| / |weights| of a step.",
            Query(gauge("update_ratio"), "update"),
        ),
        chart(
            "Skipped gradients",
            "Optimizer steps skipped so far, as their gradient was not finite.",
            Query(count("skipped_gradients"), "skipped"),
        ),
        chart(
            "Mismatch of sampler and learner",
            "Log-ratio of the learner's predictions to the sampler's (objective.old_predictions: recomputed). Above "
            "objective.max_mismatch at a timestep the run stops.",
            Query(gauge("mismatch", "statistic"), "{{statistic}}"),
        ),
        chart(
            "Importance of older samples",
            "Spread of the importance weights (objective.correction).",
            Query(gauge("importance", "statistic"), "{{statistic}}"),
        ),
    ),
)

TIMESTEPS = Row(
    "By timestep",
    (
        chart(
            "Clip fraction",
            "A row a timestep, the noisiest on top: rows that differ are timesteps that are not credited alike.",
            Query(gauge("timestep_clip_fraction", "timestep"), "{{timestep}}"),
            kind="heatmap",
            unit="percentunit",
            width=12,
        ),
        chart(
            "Std of the log-ratio",
            "A row a timestep.",
            Query(gauge("timestep_log_ratio_deviation", "timestep"), "{{timestep}}"),
            kind="heatmap",
            width=12,
        ),
        chart(
            "Fraction of the gradient",
            "Each timestep's part of all gradient norms: they add up to 1.",
            Query(gauge("timestep_gradient_share", "timestep"), "{{timestep}}"),
            **SHARE,
            stacked=True,
        ),
        chart(
            "Credit weight",
            "What each log-ratio is weighted with in the loss, what the sampler itself would give it, and the factor "
            "of the loss outside the clip.",
            Query(gauge("timestep_credit_weight", "timestep"), "{{timestep}}"),
            Query(gauge("timestep_outside_weight", "timestep"), "{{timestep}} outside"),
            Query(gauge("timestep_native_weight", "timestep"), "{{timestep}} native"),
        ),
        chart(
            "Without a gradient",
            "Fraction of images whose gradient the clip range cuts off.",
            Query(gauge("timestep_inactive_fraction", "timestep"), "{{timestep}}"),
            **SHARE,
        ),
        chart(
            "Ratio",
            "Mean at each timestep.",
            Query(gauge("timestep_ratio_mean", "timestep"), "{{timestep}}"),
            **FREE,
        ),
        chart(
            "Largest |log-ratio|",
            "At each timestep.",
            Query(gauge("timestep_log_ratio_max", "timestep"), "{{timestep}}"),
        ),
        chart(
            "Mismatch of sampler and learner",
            "Rms at each timestep, where the learner takes the old predictions itself.",
            Query(gauge("timestep_mismatch", "timestep"), "{{timestep}}"),
        ),
    ),
    collapsed=True,
)

COLLAPSE = Row(
    "Is it collapsing",
    (
        chart(
            "Std within groups, of its highest in 6 h",
            "How unlike in reward the images of a prompt still are.",
            Query(
                f"{gauge('group_deviation')} / max by (run) (max_over_time({series('group_deviation')}[6h]))",
                "of the highest",
            ),
            **SHARE,
            alert="PcpoGroupDeviationCollapsed",
        ),
        chart(
            "Diversity, of its highest in a day",
            "Mean distance between the images of a prompt.",
            Query(
                f"{gauge('evaluation_score', reward='diversity')} / "
                f"max by (run) (max_over_time({series('evaluation_score', reward='diversity')}[1d]))",
                "of the highest",
                "evaluation.rewards has diversity",
            ),
            **SHARE,
            alert="PcpoDiversityFalling",
        ),
        chart(
            "Quality",
            "Evaluations: Fréchet distance and coverage against the reference, diversity inside a prompt.",
            Query(gauge("quality", "measure"), "{{measure}}"),
        ),
        chart(
            "Training prompts",
            "Mean score on training prompts: above the evaluated score, it is what was learned by heart.",
            Query(gauge("train_prompts", "reward"), "{{reward}}"),
            **FREE,
        ),
        chart(
            "Monitors",
            "1 for a monitor whose alarm sounds; `monitors` says what the run itself does.",
            Query(gauge("alarm", "monitor"), "{{monitor}}"),
            ceiling=1.0,
            alert="PcpoAlarm",
        ),
        chart("Evaluations", "Done so far.", Query(count("evaluations"), "evaluations")),
    ),
    collapsed=True,
)

TRAINING = Dashboard(
    uid="pcpo-training",
    title="Training",
    text="Is the run learning, and is it healthy? Made by python -m pcpo_ray.metrics.dashboards.",
    rewards=True,
    rows=(GLANCE, LEARNING, HEALTH, TIMESTEPS, COLLAPSE),
)
