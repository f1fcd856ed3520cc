"""Records and exporters for the tests of metrics."""

from dataclasses import replace

from pcpo_ray.data.records import PoolStatus, StepRecord
from pcpo_ray.metrics.changes import RunNumbers


class Kept:
    """An exporter that keeps the last value of each gauge and the sum of each counter."""

    def __init__(self):
        self.values, self.calls, self.closed = {}, 0, False

    def apply(self, run, changes):
        self.calls += bool(changes)
        for change in changes:
            key = (change.metric.name.removeprefix("pcpo_"), *sorted(change.labels.items()))
            before = self.values.get(key, 0.0) if change.metric.kind == "counter" else 0.0
            self.values[key] = before + change.value

    def close(self):
        self.closed = True

    def __getitem__(self, key):
        name, labels = key if isinstance(key, tuple) else (key, {})
        return self.values[(name, *sorted(labels.items()))]


STEP = StepRecord(
    step=4,
    reward_mean=0.5,
    reward_std=0.25,
    group_deviation=0.125,
    rewards={"clip_score": 0.5},
    advantage_abs_mean=0.75,
    degenerate_groups=1,
    rounding_groups=2,
    dropped_groups=0,
    version=4,
    sample_age=0.0,
    oldest_sample=0,
    first_log_ratio=0.0,
    loss=0.01,
    learning_rate=1e-4,
    gradient_norm=2.0,
    skipped_gradients=0,
    update_ratio=1e-4,
    moved_fraction=0.98,
    ratio_mean=1.0,
    centred_ratio_mean=1.0,
    ratio_std=0.1,
    log_ratio_std=0.1,
    clip_fraction=0.3,
    inactive_fraction=0.15,
    max_log_ratio=0.4,
    per_timestep={
        "timestep": [875, 0.5],
        "native_weight": [1.0, 3.0],
        "credit_weight": [2.0, 2.0],
        "outside_weight": [1.0, 0.5],
        "ratio_mean": [1.0, None],
        "centred_ratio_mean": [1.0, None],
        "log_ratio_std": [0.2, None],
        "max_log_ratio": [0.4, None],
        "clip_fraction": [0.3, None],
        "inactive_fraction": [0.15, None],
        "gradient_share": [1.0, None],
    },
    seconds=10.0,
    samples_per_second=1.2,
    samples=4 * 12,
    phase_seconds={"sample_and_score": 6.0, "learn": 3.0, "publish": 1.0},
    busy_seconds={"samplers": {"sample_and_score": 9.0}, "learner": {"learn": 3.0}},
    workers={"samplers": 2, "scorers": 1},
    publish_lag={"seconds": 0.5, "versions": 1},
    sampler_behind=0,
    buffer_bytes=1000,
    idle={"samplers": 0.55, "scorers": 1.0, "learner": 0.7},
)

NUMBERS = RunNumbers(
    step=3,
    steps=10,
    max_staleness=1,
    in_flight=5,
    pools={
        "samplers": PoolStatus(wanted=2, ready=1, restarts={"died": 1}, retries={"lost": {"died": 1}, "hedged": {}}),
        "scorers": PoolStatus(wanted=1, ready=1),
    },
    tasks={"samplers": {"done": {"none": 7}, "lost": {"images_gone": 2}}},
)


def with_done(count, **changes):
    """The numbers of a run whose samplers have done so many tasks."""
    return replace(NUMBERS, tasks={"samplers": {"done": {"none": count}, "lost": {"images_gone": 2}}}, **changes)
