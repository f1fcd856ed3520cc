"""How fast roles are, from a probe or a run, and how many workers that asks for."""

import json

import pytest

from pcpo_ray.commands.plan import pace
from pcpo_ray.commands.plan.pace import Pace
from pcpo_ray.errors import RunError
from tests.support import small
from tests.support.running import go


def forecast(run, samplers, scorers, learner):
    return pace.forecast(run, Pace(seconds={"samplers": samplers, "scorers": scorers, "learner": learner}, source=""))


def test_a_step_takes_what_its_slowest_takes_or_one_after_the_other(small_sd):
    turns = forecast(small.run(small_sd, rollout__prompts=8, workers__samplers__workers=4), 4.0, 0.5, 1.0)
    assert turns.work == {"samplers": 32.0, "scorers": 4.0, "learner": 8.0}
    assert turns.seconds == 8.0 + 8.0
    assert turns.idle == {"samplers": 0.5, "scorers": 0.75, "learner": 0.5}
    beside = forecast(
        small.run(small_sd, rollout__prompts=8, workers__samplers__workers=4, rollout__max_staleness=1), 4.0, 0.5, 1.0
    )
    assert beside.seconds == 8.0
    assert beside.idle == {"samplers": 0.0, "scorers": 0.5, "learner": 0.0}
    assert beside.fitting == {"samplers": 4, "scorers": 1} and beside.fitting_seconds == 8.0


def test_slow_rewards_ask_for_scorers_and_a_fast_learner_for_samplers(small_sd):
    run = small.run(small_sd, rollout__prompts=8, rollout__max_staleness=1)
    assert forecast(run, 1.0, 2.0, 1.0).fitting == {"samplers": 1, "scorers": 2}
    assert forecast(run, 8.0, 0.1, 1.0).fitting == {"samplers": 8, "scorers": 1}


def test_ranks_learn_side_by_side_and_the_one_with_the_most_counts(small_sd):
    def turns(ranks, updates=1, epochs=1):
        return pace.turns(
            small.run(small_sd, rollout__prompts=6, workers__learner=f"{{ranks: {ranks}}}",
                      optimizer__minibatches=updates, optimizer__epochs=epochs)
        )  # fmt: skip

    assert [turns(1), turns(2), turns(4), turns(6)] == [6, 3, 1.5, 1]
    assert turns(1, updates=3) == turns(1, epochs=2) == 6
    assert turns(4, updates=2) == 1.5
    assert turns(5) == 5 / 4  # of 24 blocks, four a group, a rank has five at most


def test_old_predictions_cost_a_forward_pass_of_all_but_the_first_part(small_sd):
    def turns(**changes):
        asked = {"rollout__prompts": 6, "objective__old_predictions": "recomputed", **changes}
        return pace.turns(small.run(small_sd, **asked))

    assert turns() == turns(optimizer__epochs=2) == 6
    assert turns(optimizer__minibatches=2) == pytest.approx(6 + 3 / 3)
    assert turns(optimizer__minibatches=3) == pytest.approx(6 + 4 / 3)
    assert turns(optimizer__minibatches=2, model__gradient_checkpointing="true") == pytest.approx(6 + 3 / 4)
    assert turns(optimizer__minibatches=2, workers__learner="{ranks: 3}") == pytest.approx(2 + 1 / 3)


def test_a_runs_own_record_gives_its_seconds_a_group(small_sd, tmp_path):
    run = small.run(small_sd, steps=3, name="small", evaluation__every=3)
    rows = [row for row in go(run, tmp_path / "small").metrics() if row["kind"] == "train"]
    found = pace.recorded(tmp_path / "small", run)
    assert found.source == f"3 steps of {tmp_path / 'small'}"
    for role, seconds in found.seconds.items():
        spent = sorted(sum(row["busy_seconds"][role].values()) for row in rows)
        assert seconds == pytest.approx(spent[1] / 3)
    # in one process the roles take turns: they cannot take longer together than the step did
    worked = [sum(sum(phases.values()) for phases in row["busy_seconds"].values()) for row in rows]
    assert all(seconds <= row["seconds"] for seconds, row in zip(worked, rows, strict=True))


def test_a_record_is_taken_for_configs_that_cost_the_same_only(small_sd, tmp_path):
    folder = tmp_path / "small"
    go(small.run(small_sd, steps=1), folder)
    more = {"rollout__prompts": 6, "workers__samplers__workers": 3, "optimizer__minibatches": 2, "steps": 9}
    assert pace.recorded(folder, small.run(small_sd, **more)).seconds["learner"] > 0
    for changes, named in (
        ({"sampling__steps": 5}, "sampling"),
        ({"rollout__images": 6}, "rollout.images"),
        ({"optimizer__epochs": 2}, "optimizer"),
        ({"rewards": "[{kind: clip_score}]"}, "rewards"),
    ):
        with pytest.raises(RunError, match=f"has another {named} than this config"):
            pace.recorded(folder, small.run(small_sd, **changes))
    with pytest.raises(RunError, match="there is no run at"):
        pace.recorded(tmp_path / "other", small.run(small_sd))


def test_a_run_without_a_step_says_nothing_about_speed(small_sd, tmp_path):
    folder = tmp_path / "small"
    run = small.run(small_sd, steps=1)
    path = go(run, folder).folder / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows if row["kind"] == "evaluation"))
    with pytest.raises(RunError, match="has recorded no step's busy seconds"):
        pace.recorded(folder, run)


def test_a_probe_of_recomputed_predictions_learns_twice_as_well(small_sd):
    run = small.run(small_sd, rollout__images=2, objective__old_predictions="recomputed")
    assert all(seconds > 0 for seconds in pace.probe(run, lambda line: None).seconds.values())


def test_a_probe_measures_every_role_and_scales_to_whole_groups(small_sd, monkeypatch):
    said = []
    run = small.run(small_sd, rollout__images=8, sampling__batch=2)
    monkeypatch.setattr(pace, "_second_time", lambda work: (work(), 0.5))
    found = pace.probe(run, said.append)
    assert found.source == "a probe on this machine's CPU"
    assert found.seconds == dict.fromkeys(("samplers", "scorers", "learner"), 4 * 0.5)
    assert any("2 images" in line for line in said)
