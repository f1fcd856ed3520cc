"""Records become the rows that stored runs have: the same keys, and the optional ones only where there is a value."""

import json
from dataclasses import replace

from pcpo_ray.data.records import EvaluationRecord, Event, PoolStatus
from tests.support.measures import STEP


def test_a_steps_row_leaves_out_what_the_config_does_not_have():
    row = STEP.row(12.5)
    assert list(row)[:3] == ["kind", "step", "time"] and (row["kind"], row["step"], row["time"]) == ("train", 4, 12.5)
    assert not {"kl", "importance", "mismatch"} & row.keys()
    assert replace(STEP, kl=0.5).row(0.0)["kl"] == 0.5
    assert replace(STEP, group_deviation=None).values()["group_deviation"] is None  # of one image: there, and null
    assert not {"all_rewards", "by_timestep", "fresh_log_ratio", "mismatch_by_timestep"} & row.keys() and json.dumps(
        row
    )


def test_an_evaluations_row_has_quality_and_changes_only_if_any():
    record = EvaluationRecord(
        step=0, prompts=2, rewards={}, alarms={}, images=4, seconds=1.0, busy_seconds={}, workers={}
    )  # fmt: skip
    names = ["prompts", "rewards", "alarms", "images", "seconds", "busy_seconds", "workers"]
    assert list(record.values()) == names and record.row(0.0)["kind"] == "evaluation"


def test_an_event_is_its_time_its_kind_and_its_details():
    assert Event(time=1.0, kind="fault", details={"message": "x"}).row() == {
        "time": 1.0, "kind": "fault", "message": "x"
    }  # fmt: skip


def test_a_pools_counts_keep_the_names_that_scripts_read():
    pool = PoolStatus(wanted=2, ready=1, workers=("s-0",), restarts={"died": 1}, retries={"lost": {"died": 2}})
    assert pool.row() == {
        "wanted": 2, "ready": 1, "lent": 0, "workers": ("s-0",), "unplaced": 0, "room": "", "losses": {"died": 1},
        "setbacks": {"lost": {"died": 2}}
    }  # fmt: skip
