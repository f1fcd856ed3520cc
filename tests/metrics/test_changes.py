"""Records, events and statuses become changes of catalogued metrics."""

import json
import math
from dataclasses import replace

import pytest

from pcpo_ray.data.records import EvaluationRecord, Event
from pcpo_ray.metrics import changes
from pcpo_ray.metrics.catalogue import BY_NAME, CATALOGUE, MONITORS, PHASES
from pcpo_ray.metrics.changes import Change, idle_seconds
from tests.support.measures import NUMBERS, STEP, Kept, with_done


def told(**more):
    kept = Kept()
    kept.apply("r", list(changes.of_record(replace(STEP, **more))))
    return kept


def test_a_steps_numbers_are_gauges_and_what_it_took_is_counted():
    kept = told()
    assert (kept["degenerate_groups"], kept["rounding_groups"]) == (1, 2)
    assert (kept["loss"], kept["clip_fraction"], kept["reward_deviation"]) == (0.01, 0.3, 0.25)
    assert kept["reward", {"reward": "reward"}] == kept["reward", {"reward": "clip_score"}] == 0.5
    assert (kept["updates"], kept["step_seconds"], kept["samples", {"purpose": "train"}]) == (1, 10.0, 12)
    assert kept["busy_seconds", {"role": "samplers", "phase": "sample_and_score"}] == 9.0
    assert kept["phase_seconds", {"phase": "learn"}] == 3.0


def test_each_timestep_is_a_label_and_untrained_ones_change_nothing():
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


def test_a_mismatch_is_told_by_timestep_where_it_was_measured():
    columns = {**STEP.per_timestep, "mismatch": [2e-5, None]}
    kept = told(mismatch={"rms": 1e-5, "largest": 3e-5}, per_timestep=columns)
    assert kept["mismatch", {"statistic": "rms"}] == 1e-5 and kept["mismatch", {"statistic": "largest"}] == 3e-5
    assert kept["timestep_mismatch", {"timestep": "875"}] == 2e-5
    assert len([key for key in kept.values if key[0] == "timestep_mismatch"]) == 1
    assert not [key for key in told().values if "mismatch" in key[0]]


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
    record = EvaluationRecord(
        step=0, prompts=1, rewards={"reward": found}, images=4, seconds=2.0, train_rewards={"reward": found},
        changes={"reward": {**found, "mean": 0.25}},
        quality={"frechet": 0.25}, alarms={"hacking": "why"}, busy_seconds={"samplers": {"evaluate": 1.5}},
        workers={"samplers": 1, "scorers": 1},
    )  # fmt: skip
    kept.apply("r", list(changes.of_record(record)))
    label = {"reward": "reward"}
    assert (
        kept["evaluation_score_low", label],
        kept["evaluation_score", label],
        kept["evaluation_score_high", label],
    ) == (0.5, 1.0, 1.5)
    assert kept["evaluation_change", label] == 0.25
    assert (kept["train_prompts", label], kept["quality", {"measure": "frechet"}]) == (1.0, 0.25)
    assert {name: kept["alarm", {"monitor": name}] for name in MONITORS} == {
        "diversity": 0, "deviation": 0, "reward": 0, "hacking": 1
    }  # fmt: skip
    assert (kept["evaluations"], kept["samples", {"purpose": "evaluate"}]) == (1, 4)
    assert kept["phase_seconds", {"phase": "evaluate"}] == 2.0
    assert kept["idle_seconds", {"role": "samplers", "phase": "evaluate"}] == 0.5


def test_judges_tokens_of_steps_and_evaluations_are_counted():
    kept, used = Kept(), {"judge": {"prompt": 300, "completion": 21}}
    evaluated = EvaluationRecord(
        step=0, prompts=1, rewards={}, images=4, seconds=2.0, alarms={}, busy_seconds={}, workers={}, tokens=used
    )
    for record in (evaluated, replace(STEP, tokens=used), replace(STEP, tokens=None)):
        kept.apply("r", list(changes.of_record(record)))
    found = [kept["judge_tokens", {"reward": "judge", "kind": kind}] for kind in ("prompt", "completion")]
    assert found == [600, 42]


def test_events_count_what_they_tell_of():
    kept = Kept()

    def tell(kind, **details):
        kept.apply("r", list(changes.of_event(Event(time=0.0, kind=kind, details=details))))

    for averaged in (False, False, True):
        tell("published", version=1, averaged=averaged, bytes=100, seconds=0.5)
    tell("resized", why="asked for", samplers=3)
    tell("fault", message="sampler-1 is gone")
    tell("fault", message="the learner is gone", restarted="learner")
    tell("checkpoint", step=3, seconds=0.25)
    tell("something_else", anything=1)
    assert kept["publishes", {"kind": "weights"}] == 2 and kept["publish_bytes", {"kind": "average"}] == 100
    assert kept["publish_seconds", {"kind": "weights"}] == 1.0
    assert kept["resizes", {"role": "samplers", "why": "asked for"}] == 1
    assert kept["restarts", {"role": "learner", "cause": "died"}] == 1
    assert (kept["checkpoints"], kept["phase_seconds", {"phase": "checkpoint"}]) == (1, 0.25)


@pytest.mark.parametrize(
    ("kind", "details", "how"),
    [
        ("finished", {}, "finished"),
        ("stopped", {}, "stopped"),
        ("stopped", {"alarm": "hacked"}, "alarm"),
        ("rolled_back", {"to": 2, "alarm": "hacked"}, "alarm"),
        ("failed", {"error": "x"}, "failed"),
    ],
)
def test_a_driver_says_under_its_own_name_when_it_started_and_ended(kind, details, how):
    kept = Kept()
    kept.apply("r", list(changes.of_event(Event(time=1000.0, kind="started", details={}), "d1")))
    kept.apply("r", list(changes.of_event(Event(time=2000.0, kind=kind, details=details), "d1")))
    assert kept["started_seconds", {"driver": "d1"}] == 1000.0
    assert kept["runs_ended", {"driver": "d1", "how": how}] == 1


def test_one_phase_is_on_at_a_time():
    kept = Kept()
    for phase in PHASES:
        kept.apply("r", list(changes.of_phase(phase)))
        on = [dict(key[1:])["phase"] for key, value in kept.values.items() if key[0] == "phase" and value]
        assert on == [phase]


def test_idle_is_what_workers_have_of_a_phase_less_what_they_worked():
    idle = idle_seconds({"a": 4.0, "b": 2.0}, {"samplers": {"a": 6.0}}, {"samplers": 2})
    assert idle == {"samplers": {"a": 2.0, "b": 4.0}, "learner": {"a": 4.0, "b": 2.0}}


def test_work_begun_in_another_phase_is_taken_from_that_ones_idle_time():
    """Sampled during a, counted in b, where it ended: 4 + 2 seconds of one worker, 5 of work."""
    idle = idle_seconds({"a": 4.0, "b": 2.0}, {"samplers": {"b": 5.0}}, {"samplers": 1})["samplers"]
    assert idle == {"a": pytest.approx(1.0), "b": 0.0}
    more = idle_seconds({"a": 4.0, "b": 2.0}, {"samplers": {"b": 50.0}}, {"samplers": 1})["samplers"]
    assert more == {"a": pytest.approx(0.0), "b": 0.0}
    assert idle_seconds({"a": 0.0}, {}, {})["learner"] == {"a": 0.0}


def test_labels_that_a_metric_does_not_have_are_refused():
    with pytest.raises(ValueError, match=r"pcpo_evaluation_score has the labels \['reward'\]; got \[\]"):
        changes.change("evaluation_score", 1.0)


def test_nothing_but_catalogued_metrics_can_be_told():
    assert json.dumps(sorted(BY_NAME)) and changes.change("loss", 1) == Change(BY_NAME["loss"], 1.0, {})
    with pytest.raises(KeyError):
        changes.change("a_new_one", 1.0)


def test_a_status_tells_where_the_run_is_and_its_workers():
    kept = Kept()
    kept.apply("r", list(changes.of_status(NUMBERS, {})))
    assert (kept["step"], kept["steps"], kept["max_staleness"], kept["in_flight"]) == (3, 10, 1, 5)
    wanted, ready = (kept[name, {"role": "samplers"}] for name in ("workers_wanted", "workers_ready"))
    assert (wanted, ready) == (2, 1)
    grown = list(changes.of_status(with_done(9), changes.totals(NUMBERS)))
    assert [one.value for one in grown if one.labels.get("outcome") == "done"] == [2]


def test_every_field_of_the_catalogue_is_one_that_its_record_has():
    records = {"step": STEP, "status": NUMBERS}
    for metric in CATALOGUE:
        source, *path = metric.field.split(".")
        if source in records and path != ["importance", "*"]:  # absent where no sample is old
            found = list(changes._walk(records[source], path))
            assert found or metric.when, metric.name
            assert all(len(keys) == len(metric.labels) for keys, _ in found), metric.name
    assert {metric.field.split(".")[0] for metric in CATALOGUE} == {"", "step", "evaluation", "status"}
