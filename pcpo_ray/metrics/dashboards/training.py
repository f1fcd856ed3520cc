"""The dashboard `Training`: is the run learning, and is it healthy?"""

from pcpo_ray.metrics.dashboards.grafana import Dashboard, Row, chart
from pcpo_ray.metrics.dashboards.query import Query, count, gauge, rate, series

SHARE = {"unit": "percentunit", "ceiling": 1.0}
FREE = {"floor": None}
STAT = {"kind": "stat", "width": 4, "height": 4}

STEP_SECONDS = f"{rate('step_seconds')} / {rate('updates')}"

WHERE = Row(
    "Where it is",
    (
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
            "Time left",
            "The steps left at the window's pace; evaluations come on top.",
            Query(f"({gauge('steps')} - {gauge('step')}) * ({STEP_SECONDS})", "left"),
            **STAT,
            unit="s",
        ),
        chart(
            "Alarms",
            "Alerts of deploy/prometheus/rules.yaml that are firing: of the run, or of its cluster.",
            Query('max by (alertname) (ALERTS{alertstate="firing",alertname=~"Pcpo.*",run=~"$run|"})', "{{alertname}}"),
            height=4,
        ),
    ),
)

LEARNING = Row(
    "Is it learning",
    (
        chart(
            "Reward",
            "Mean score of each step's batch; `reward` is the weighted sum of all.",
            Query(gauge("reward", "reward"), "{{reward}}"),
            **FREE,
        ),
        chart(
            "Evaluated score",
            "Mean on the evaluation's prompts each time, with the same noise every time.",
            Query(gauge("evaluation_score", "reward"), "{{reward}}"),
            **FREE,
        ),
        chart(
            "Evaluated reward and its interval",
            "The weighted sum, with its 95% interval over prompts.",
            Query(gauge("evaluation_score_high", reward="reward"), "high"),
            Query(gauge("evaluation_score", reward="reward"), "mean"),
            Query(gauge("evaluation_score_low", reward="reward"), "low"),
            **FREE,
        ),
        chart(
            "Deviation of the reward",
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
        ),
        chart("|Advantage|", "Its mean over the batch.", Query(gauge("advantage_magnitude"), "mean")),
    ),
)

HEALTH = Row(
    "Is it healthy",
    (
        chart(
            "Clip fraction",
            "Share of (image, timestep) pairs beyond the clip range, and of those left without a gradient by it.",
            Query(gauge("clip_fraction"), "beyond the range"),
            Query(gauge("inactive_fraction"), "without a gradient"),
            **SHARE,
        ),
        chart("Ratio", "Mean of new to old density.", Query(gauge("ratio_mean"), "mean"), **FREE),
        chart(
            "Spread of ratio and log-ratio",
            "Deviations over a batch, and the largest |log-ratio|.",
            Query(gauge("ratio_deviation"), "deviation of the ratio"),
            Query(gauge("log_ratio_deviation"), "deviation of the log-ratio"),
            Query(gauge("log_ratio_max"), "largest |log-ratio|"),
        ),
        chart(
            "|Log-ratio| before the weights moved",
            "Must be 0: else sampler and learner compute different predictions.",
            Query(gauge("first_log_ratio"), "largest"),
        ),
        chart(
            "Loss",
            "Of each update; KL is what objective.kl multiplies.",
            Query(gauge("loss"), "loss"),
            Query(gauge("kl"), "KL"),
            **FREE,
        ),
        chart("Gradient norm", "L2 norm before clipping.", Query(gauge("gradient_norm"), "norm")),
        chart(
            "Weights that moved",
            "Fraction of the trained weights whose bits a step changed. Near 0, nothing is trained.",
            Query(gauge("moved_fraction"), "moved"),
            unit="percentunit",
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
            "Deviation of the log-ratio",
            "A row a timestep.",
            Query(gauge("timestep_log_ratio_deviation", "timestep"), "{{timestep}}"),
            kind="heatmap",
            width=12,
        ),
        chart(
            "Share of the gradient",
            "Each timestep's part of all gradient norms: they add up to 1.",
            Query(gauge("timestep_gradient_share", "timestep"), "{{timestep}}"),
            **SHARE,
            stacked=True,
        ),
        chart(
            "Credit weight",
            "What each log-ratio is weighted with in the loss, and what the sampler itself would give it.",
            Query(gauge("timestep_credit_weight", "timestep"), "{{timestep}}"),
            Query(gauge("timestep_native_weight", "timestep"), "{{timestep}} native"),
        ),
        chart(
            "Without a gradient",
            "Share of images whose gradient the clip range cuts off.",
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
    ),
)

COLLAPSE = Row(
    "Is it collapsing",
    (
        chart(
            "Deviation within groups, of its highest in 6 h",
            "Alert PcpoGroupDeviationCollapsed fires below 10%.",
            Query(
                f"{gauge('group_deviation')} / max by (run) (max_over_time({series('group_deviation')}[6h]))",
                "of the highest",
            ),
            **SHARE,
        ),
        chart(
            "Diversity",
            "Mean distance between the images of a prompt. Alert PcpoDiversityFalling fires below 80% of its highest.",
            Query(gauge("evaluation_score", reward="diversity"), "diversity", "evaluation.rewards has diversity"),
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
            "1 for a monitor whose alarm sounds. Alert PcpoAlarm fires then; `monitors` says what the run itself does.",
            Query(gauge("alarm", "monitor"), "{{monitor}}"),
            ceiling=1.0,
        ),
        chart("Evaluations", "Done so far.", Query(count("evaluations"), "evaluations")),
    ),
)

TRAINING = Dashboard(
    uid="pcpo-training",
    title="Training",
    text="Is the run learning, and is it healthy? Made by python -m pcpo_ray.metrics.dashboards.",
    rows=(WHERE, LEARNING, HEALTH, TIMESTEPS, COLLAPSE),
)
