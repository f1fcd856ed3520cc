"""The dashboard `Cluster`: who waits for whom, and what broke?"""

from pcpo_ray.metrics.dashboards.grafana import Dashboard, Row, chart
from pcpo_ray.metrics.dashboards.query import CHOSEN, Query, count, gauge, rate, series
from pcpo_ray.metrics.dashboards.training import SHARE, STEP_SECONDS

SESSION = 'SessionName=~"$SessionName"'
ON_RAY = "the run is on Ray"
STACKED = {"stacked": True}
NOT_DONE = f'{CHOSEN},outcome!="done"'
BUSY, IDLE = rate("busy_seconds", "role"), rate("idle_seconds", "role")


def by_phase(of_a_node: str) -> str:
    """A number of Ray's nodes, in mean, under the phase that the driver is in."""
    nodes = f"avg by (SessionName) ({of_a_node}{{{SESSION}}})"
    return f"{nodes} * on (SessionName) group_right () ({gauge('phase', 'phase', 'SessionName')} == 1)"


def mean(seconds: str, events: str, *by: str) -> str:
    """Over the window: what a counter of seconds or bytes grew by for each event."""
    return f"{rate(seconds, *by)} / {rate(events, *by)}"


WAITING = Row(
    "Who waits for whom",
    (
        chart(
            "Idle",
            "Fraction of its ready workers' time that each role waits. With max_staleness 0 not all can be busy.",
            Query(f"{IDLE} / ({BUSY} + {IDLE})", "{{role}}"),
            **SHARE,
        ),
        chart("Busy workers", "How many workers' time each role's work takes.", Query(BUSY, "{{role}}")),
        chart(
            "Idle workers, by phase",
            "Where each role waits: workers' seconds a second.",
            Query(rate("idle_seconds", "role", "phase"), "{{role}} in {{phase}}"),
            **STACKED,
        ),
        chart(
            "Phases",
            "What the driver spends its time on.",
            Query(
                f"{rate('phase_seconds', 'phase')} / on (run) group_left () {rate('phase_seconds')}",
                "{{phase}}",
            ),
            **SHARE,
            **STACKED,
        ),
        chart(
            "Phase now",
            "1 where the driver is.",
            Query(gauge("phase", "phase"), "{{phase}}"),
            kind="state-timeline",
        ),
        chart(
            "GPU use, by phase",
            "Ray's utilisation of all GPUs of the session, under the phase that the driver was in.",
            Query(by_phase("ray_node_gpus_utilization"), "{{phase}}", ON_RAY),
            unit="percent",
            ceiling=100.0,
        ),
        chart(
            "CPU use, by phase",
            "The same of the nodes' CPUs.",
            Query(by_phase("ray_node_cpu_utilization"), "{{phase}}", ON_RAY),
            unit="percent",
            ceiling=100.0,
        ),
        chart("Images a second", "Sampled and scored.", Query(rate("samples", "purpose"), "{{purpose}}")),
        chart("Seconds a step", "Mean over the window.", Query(STEP_SECONDS, "a step"), unit="s"),
        chart(
            "Judges' tokens",
            "Tokens a second that questions to judges take (prompt) and their answers (completion), as servers count.",
            Query(rate("judge_tokens", "reward", "kind"), "{{reward}}, {{kind}}"),
            **STACKED,
        ),
    ),
)

VERSIONS = Row(
    "Versions",
    (
        chart(
            "Age of what is learned",
            "Versions older than the newest weights, and what rollout.max_staleness allows.",
            Query(gauge("sample_age"), "mean"),
            Query(gauge("sample_age_max"), "oldest"),
            Query(gauge("max_staleness"), "allowed"),
        ),
        chart(
            "The last sampler's lag",
            "Versions since the sampler heard of least lately last sampled, beyond what rollout.max_staleness allows: "
            "it hangs, is slow, or is not needed.",
            Query(f"{gauge('sampler_behind')} - {gauge('max_staleness')}", "versions"),
            floor=None,
            alert="PcpoSamplerBehind",
        ),
        chart(
            "Unused versions",
            "Mean seconds from sending weights out to the first sampler's beginning with them.",
            Query(mean("publish_lag_seconds", "versions_used"), "lag"),
            unit="s",
        ),
        chart(
            "Sending weights out",
            "Mean seconds until they can be loaded: the weights, and their running average.",
            Query(mean("publish_seconds", "publishes", "kind"), "{{kind}}"),
            unit="s",
        ),
        chart(
            "Size of a version",
            "Mean bytes.",
            Query(mean("publish_bytes", "publishes", "kind"), "{{kind}}"),
            unit="bytes",
        ),
        chart("Weights sent", "Bytes a second.", Query(rate("publish_bytes"), "sent"), unit="Bps"),
    ),
    collapsed=True,
)

FAULTS = Row(
    "Faults",
    (
        chart(
            "Workers replaced",
            "So far, by what ended them: died, silent, failing at its work, drained with its node.",
            Query(count("restarts", "role", "cause"), "{{role}}: {{cause}}"),
        ),
        chart(
            "Drivers that ended",
            "So far, and how. Alerts PcpoRunFailed and PcpoRunVanished tell of those that did not end on purpose.",
            Query(count("runs_ended", "how"), "{{how}}"),
        ),
        chart("Tasks done", "A second.", Query(rate("tasks", "role", outcome="done"), "{{role}}")),
        chart(
            "Tasks lost, hedged, or with scores missing",
            "So far, with the reason.",
            Query(
                f"sum by (run, role, outcome, reason) ({series('tasks', NOT_DONE)})",
                "{{role}} {{outcome}}: {{reason}}",
                "a task came to anything but its end",
            ),
        ),
    ),
)

POOLS = Row(
    "Pools",
    (
        chart(
            "Workers",
            "Wanted, and at work.",
            Query(gauge("workers_wanted", "role"), "{{role}} wanted"),
            Query(gauge("workers_ready", "role"), "{{role}} ready"),
        ),
        chart("Resizes", "So far, and why.", Query(count("resizes", "role", "why"), "{{role}}: {{why}}")),
        chart("Groups in flight", "Being sampled or scored.", Query(gauge("in_flight"), "groups")),
    ),
)

MEMORY = Row(
    "Memory and disk",
    (
        chart(
            "Waiting to be learned",
            "The most that trajectories and images held in a step.",
            Query(gauge("buffer_bytes"), "held"),
            unit="bytes",
        ),
        chart(
            "Object store",
            "All nodes of the session, by where it lies. Alert PcpoSpilling fires while SPILLED is above 0.",
            Query(f"sum by (Location) (ray_object_store_memory{{{SESSION}}})", "{{Location}}", ON_RAY),
            unit="bytes",
            **STACKED,
        ),
        chart(
            "Memory of the nodes",
            "Used, of what they have.",
            Query(
                f"sum by (SessionName) (ray_node_mem_used{{{SESSION}}}) / "
                f"sum by (SessionName) (ray_node_mem_total{{{SESSION}}})",
                "used",
                ON_RAY,
            ),
            **SHARE,
        ),
        chart("Checkpoints", "Written so far.", Query(count("checkpoints"), "checkpoints")),
    ),
    collapsed=True,
)

CLUSTER = Dashboard(
    uid="pcpo-cluster",
    title="Cluster",
    text="Who waits for whom, and what broke? Made by python -m pcpo_ray.metrics.dashboards.",
    rows=(WAITING, FAULTS, POOLS, VERSIONS, MEMORY),
)
