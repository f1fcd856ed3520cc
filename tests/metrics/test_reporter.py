"""Rows, events and statuses become changes of catalogued metrics; an exporter gets them when there is something new."""

import json
import math
from dataclasses import replace

import pytest

from pcpo_ray.data.updates import PoolStatus
from pcpo_ray.metrics import reporter
from pcpo_ray.metrics.catalogue import BY_NAME
from pcpo_ray.metrics.reporter import Change, ExportingReporter, RunNumbers, idle_seconds
from pcpo_ray.training import monitors


class Kept:
    """An exporter that keeps what it gets: the last value of each gauge, the sum of each counter."""

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


STEP = {
    "kind": "train",
    "step": 4,
    "reward_mean": 0.5,
    "reward_std": 0.25,
    "group_deviation": 0.125,
    "rewards": {"clip_score": 0.5},
    "advantage_abs_mean": 0.75,
    "degenerate_groups": 1,
    "rounding_groups": 2,
    "sample_age": 0.0,
    "oldest_sample": 0,
    "first_log_ratio": 0.0,
    "loss": 0.01,
    "gradient_norm": 2.0,
    "skipped_gradients": 0,
    "update_ratio": 1e-4,
    "moved_fraction": 0.98,
    "ratio_mean": 1.0,
    "ratio_std": 0.1,
    "log_ratio_std": 0.1,
    "clip_fraction": 0.3,
    "inactive_fraction": 0.15,
    "max_log_ratio": 0.4,
    "per_timestep": {
        "timestep": [875, 0.5],
        "native_weight": [1.0, 3.0],
        "credit_weight": [2.0, 2.0],
        "ratio_mean": [1.0, None],
        "log_ratio_std": [0.2, None],
        "max_log_ratio": [0.4, None],
        "clip_fraction": [0.3, None],
        "inactive_fraction": [0.15, None],
        "gradient_share": [1.0, None],
    },
    "seconds": 10.0,
    "samples": 4 * 12,
    "phase_seconds": {"sample_and_score": 6.0, "learn": 3.0, "publish": 1.0},
    "busy_seconds": {"samplers": {"sample_and_score": 9.0}, "learner": {"learn": 3.0}},
    "workers": {"samplers": 2, "scorers": 1},
    "publish_lag": {"seconds": 0.5, "versions": 1},
    "sampler_behind": 0,
    "buffer_bytes": 1000,
}
STANDING = RunNumbers(
    step=3,
    steps=10,
    max_staleness=1,
    in_flight=5,
    pools={
        "samplers": PoolStatus(wanted=2, ready=1, losses={"died": 1}, setbacks={"lost": {"died": 1}, "hedged": {}}),
        "scorers": PoolStatus(wanted=1, ready=1),
    },
    tasks={"samplers": {"done": {"none": 7}, "lost": {"images_gone": 2}}},
)


def with_done(count, **changes):
    return replace(STANDING, tasks={"samplers": {"done": {"none": count}, "lost": {"images_gone": 2}}}, **changes)


def told(**changes):
    kept = Kept()
    ExportingReporter("r", kept).row({**STEP, **changes})
    return kept


def test_a_steps_numbers_are_gauges_and_what_it_took_is_counted():
    kept = told()
    assert (kept["degenerate_groups"], kept["rounding_groups"]) == (1, 2)
    assert (kept["step"], kept["loss"], kept["clip_fraction"], kept["reward_deviation"]) == (4, 0.01, 0.3, 0.25)
    assert kept["reward", {"reward": "reward"}] == kept["reward", {"reward": "clip_score"}] == 0.5
    assert (kept["updates"], kept["step_seconds"], kept["samples", {"purpose": "train"}]) == (1, 10.0, 12)
    assert kept["busy_seconds", {"role": "samplers", "phase": "sample_and_score"}] == 9.0
    assert kept["phase_seconds", {"phase": "learn"}] == 3.0


def test_each_timestep_is_a_label_and_one_that_was_not_trained_says_nothing_new():
    kept = told()
    assert kept["timestep_clip_fraction", {"timestep": "875"}] == 0.3
    assert kept["timestep_credit_weight", {"timestep": "0.5"}] == 2.0
    assert ("timestep_clip_fraction", ("timestep", "0.5")) not in kept.values


def test_what_a_row_does_not_have_makes_no_metric():
    assert ("kl",) not in told().values and told(kl=0.2)["kl"] == 0.2
    assert ("group_deviation",) not in told(group_deviation=None).values


def test_how_far_the_weights_moved_and_what_was_skipped_are_told():
    kept = told(skipped_gradients=2, importance={"mean": 0.9, "effective": 0.5})
    assert (kept["moved_fraction"], kept["update_ratio"], kept["skipped_gradients"]) == (0.98, 1e-4, 2)
    assert kept["importance", {"statistic": "effective"}] == 0.5
    assert not [key for key in told().values if key[0] == "importance"]


def test_only_fresh_samples_say_whether_the_first_ratio_is_one():
    assert told()["first_log_ratio"] == 0.0
    assert ("first_log_ratio",) not in told(oldest_sample=1, first_log_ratio=0.3).values


def test_a_reward_that_is_no_number_is_said_to_be_none():
    label = {"reward": "reward", "purpose": "train"}
    assert told()["mean_missing", label] == 0 and told(reward_mean=math.nan)["mean_missing", label] == 1
    assert math.isnan(told(reward_mean=math.nan)["reward", {"reward": "reward"}])


def test_an_evaluation_says_each_rewards_mean_and_interval():
    kept = Kept()
    found = {"mean": 1.0, "low": 0.5, "high": 1.5}
    row = {"kind": "evaluation", "step": 0, "rewards": {"reward": found}, "images": 4, "seconds": 2.0,
           "train_rewards": {"reward": found}, "quality": {"frechet": 0.25}, "alarms": {"hacking": "why"},
           "busy_seconds": {"samplers": {"evaluate": 1.5}}, "workers": {"samplers": 1, "scorers": 1}}  # fmt: skip
    ExportingReporter("r", kept).row(row)
    label = {"reward": "reward"}
    assert (
        kept["evaluation_score_low", label],
        kept["evaluation_score", label],
        kept["evaluation_score_high", label],
    ) == (0.5, 1.0, 1.5)
    assert (kept["train_prompts", label], kept["quality", {"measure": "frechet"}]) == (1.0, 0.25)
    assert {name: kept["alarm", {"monitor": name}] for name in monitors.NAMES} == {
        "diversity": 0, "deviation": 0, "reward": 0, "hacking": 1
    }  # fmt: skip
    assert (kept["evaluations"], kept["samples", {"purpose": "evaluate"}]) == (1, 4)
    assert kept["phase_seconds", {"phase": "evaluate"}] == 2.0
    assert kept["idle_seconds", {"role": "samplers", "phase": "evaluate"}] == 0.5


def test_events_count_what_they_tell_of():
    kept = Kept()
    metered = ExportingReporter("r", kept)
    for averaged in (False, False, True):
        metered.event("published", {"version": 1, "averaged": averaged, "bytes": 100, "seconds": 0.5})
    metered.event("resized", {"why": "asked for", "samplers": 3})
    metered.event("fault", {"message": "sampler-1 is gone"})
    metered.event("fault", {"message": "the learner is gone", "restarted": "learner"})
    metered.event("checkpoint", {"step": 3, "seconds": 0.25})
    metered.event("something_else", {"anything": 1})
    assert kept["publishes", {"kind": "weights"}] == 2 and kept["publish_bytes", {"kind": "average"}] == 100
    assert kept["publish_seconds", {"kind": "weights"}] == 1.0
    assert kept["resizes", {"role": "samplers", "why": "asked for"}] == 1
    assert kept["restarts", {"role": "learner", "cause": "died"}] == 1
    assert (kept["checkpoints"], kept["phase_seconds", {"phase": "checkpoint"}]) == (1, 0.25)


def test_a_statuss_totals_become_growth_and_it_is_looked_at_now_and_then_only():
    now, kept = [100.0], Kept()
    metered = ExportingReporter("r", kept, now=lambda: now[0])
    metered.status(STANDING)
    assert kept["tasks", {"role": "samplers", "outcome": "done", "reason": "none"}] == 7
    assert kept["workers_ready", {"role": "samplers"}] == 1 and kept["in_flight"] == 5
    more = with_done(9, in_flight=2)
    calls = kept.calls
    for _ in range(100):
        metered.status(more)
    assert kept.calls == calls and kept["in_flight"] == 5
    now[0] += reporter.REFRESH
    metered.status(more)
    assert kept["tasks", {"role": "samplers", "outcome": "done", "reason": "none"}] == 9
    assert kept["tasks", {"role": "samplers", "outcome": "lost", "reason": "died"}] == 1
    assert kept["tasks", {"role": "samplers", "outcome": "lost", "reason": "images_gone"}] == 2
    assert kept["restarts", {"role": "samplers", "cause": "died"}] == 1 and kept["in_flight"] == 2


@pytest.mark.parametrize("end", [lambda metered: metered.row(STEP), lambda metered: metered.close()])
def test_the_last_status_before_a_step_or_the_end_is_not_lost(end):
    kept = Kept()
    metered = ExportingReporter("r", kept, now=lambda: 0.0)
    metered.status(STANDING)
    metered.status(with_done(30))
    end(metered)
    assert kept["tasks", {"role": "samplers", "outcome": "done", "reason": "none"}] == 30


def test_one_phase_is_on_at_a_time():
    kept = Kept()
    metered = ExportingReporter("r", kept)
    for phase in reporter.PHASES:
        metered.phase(phase)
        on = [dict(key[1:])["phase"] for key, value in kept.values.items() if key[0] == "phase" and value]
        assert on == [phase]


def test_idle_is_what_workers_have_of_a_phase_less_what_they_worked():
    idle = idle_seconds({"a": 4.0, "b": 2.0}, {"samplers": {"a": 6.0}}, {"samplers": 2})
    assert idle == {"samplers": {"a": 2.0, "b": 4.0}, "learner": {"a": 4.0, "b": 2.0}}


def test_work_that_was_begun_in_another_phase_is_taken_from_that_ones_idle_time():
    """Sampled during a, counted in b, where it ended: 4 + 2 seconds of one worker, 5 of work."""
    idle = idle_seconds({"a": 4.0, "b": 2.0}, {"samplers": {"b": 5.0}}, {"samplers": 1})["samplers"]
    assert idle == {"a": pytest.approx(1.0), "b": 0.0}
    more = idle_seconds({"a": 4.0, "b": 2.0}, {"samplers": {"b": 50.0}}, {"samplers": 1})["samplers"]
    assert more == {"a": pytest.approx(0.0), "b": 0.0}
    assert idle_seconds({"a": 0.0}, {}, {})["learner"] == {"a": 0.0}


def test_labels_that_a_metric_does_not_have_are_refused():
    with pytest.raises(ValueError, match=r"pcpo_evaluation_score has the labels \['reward'\]; got \[\]"):
        reporter.change("evaluation_score", 1.0)


def test_nothing_but_catalogued_metrics_can_be_told():
    assert json.dumps(sorted(BY_NAME)) and reporter.change("loss", 1) == Change(BY_NAME["loss"], 1.0, {})
    with pytest.raises(KeyError):
        reporter.change("a_new_one", 1.0)
