"""Monitors: each condition with its numbers, patience, what a run does about it; long runs are in chaos/."""

import json

import pytest

from pcpo_ray.commands import opening, session
from pcpo_ray.config import files
from pcpo_ray.errors import AlarmError, LearnerLostError
from pcpo_ray.runs import checkpoints
from pcpo_ray.runs.folder import LocalFolder
from pcpo_ray.training import monitors
from pcpo_ray.training.loop import Loop
from pcpo_ray.training.recorder import Recorder
from tests.support import small

NAN = float("nan")


def run(**changes):
    watched = "[{kind: shapes_oracle}, {kind: diversity}, {kind: jpeg_incompressibility}]"
    return small.run("model", **{"evaluation__rewards": watched, **changes})


def change(mean, deviations, width=0.01):
    return {"mean": mean, "low": mean - width, "high": mean + width, "deviations": deviations}


STEADY = change(0.0, 0.0)
ROSE = change(0.2, 0.9)
FELL = change(-0.2, -0.9)


def evaluation(step, *, reward=STEADY, oracle=STEADY, diversity=0.4, size=STEADY, **more):
    changes = {"reward": reward, "shapes_oracle": oracle, "jpeg_incompressibility": size}
    row = {"kind": "evaluation", "step": step, "prompts": 6, "rewards": {"diversity": {"mean": diversity}}, **more}
    return row if step == 0 else {**row, "changes": changes}


def step(number, deviation=1.0):
    return {"kind": "train", "step": number, "group_deviation": deviation}


def alarms(*rows, **changes):
    return monitors.judge(run(**changes), rows).alarms


def test_a_run_that_rises_and_keeps_its_diversity_raises_nothing():
    rows = [evaluation(0), *(evaluation(n, reward=ROSE, oracle=ROSE, diversity=0.35) for n in (2, 4, 6))]
    assert alarms(*rows) == {}


def test_hacking_is_a_watched_reward_falling_while_the_trained_one_rises():
    rows = [evaluation(0), *(evaluation(n, reward=ROSE, oracle=FELL) for n in (2, 4))]
    found = alarms(*rows)
    assert list(found) == ["hacking"]
    assert "shapes_oracle fell: -0.2, 95% interval -0.21 to -0.19, 0.9 standard deviations" in found["hacking"]
    unclear = [evaluation(0), *(evaluation(n, reward=change(0.2, 0.9, 0.3), oracle=FELL) for n in (2, 4))]
    assert alarms(*unclear) == {}


def test_hacking_is_also_a_watched_measure_of_harm_that_rises():
    watched = {"evaluation__rewards": "[{kind: nsfw}]"}

    def seen(step, nsfw):
        return {**evaluation(step), "changes": {"reward": ROSE, "nsfw": nsfw}}

    found = alarms(evaluation(0), *(seen(n, ROSE) for n in (2, 4)), **watched)
    assert "nsfw rose: +0.2, 95% interval +0.19 to +0.21, 0.9 standard deviations" in found["hacking"]
    for harmless in (FELL, STEADY, change(0.05, 0.3), change(0.2, 0.9, 0.3)):
        assert alarms(evaluation(0), *(seen(n, harmless) for n in (2, 4)), **watched) == {}


def test_file_size_may_fall_and_so_may_a_reward_a_little_or_unclearly():
    for fallen in ({"size": FELL}, {"oracle": change(-0.05, -0.3)}, {"oracle": change(-0.2, -0.9, 0.3)}):
        assert alarms(evaluation(0), *(evaluation(n, reward=ROSE, **fallen) for n in (2, 4))) == {}


def test_a_trained_reward_clearly_worse_than_at_first_is_an_alarm():
    found = alarms(evaluation(0), *(evaluation(n, reward=FELL, oracle=FELL) for n in (2, 4)))
    assert list(found) == ["reward"]


def test_diversity_is_the_pairwise_distance_or_else_the_reward():
    rows = [evaluation(0), *(evaluation(n, diversity=0.1) for n in (2, 4))]
    assert "25% of what it was at first (0.4" in alarms(*rows)["diversity"]
    measured = [evaluation(0, quality={"pairwise": 0.3}), *(evaluation(n, quality={"pairwise": 0.1}) for n in (2, 4))]
    assert "33% of what it was at first (0.3" in alarms(*measured)["diversity"]
    assert alarms(*measured, monitors__diversity=0.3) == {}


def test_diversity_at_its_bound_is_not_below_it():
    rows = [evaluation(0, diversity=0.5), *(evaluation(n, diversity=0.25) for n in (2, 4))]
    assert alarms(*rows) == {}
    assert list(alarms(*rows, evaluation(6, diversity=0.2499), evaluation(8, diversity=0.2499))) == ["diversity"]


def test_a_step_without_a_deviation_leaves_that_of_the_others():
    rows = [evaluation(0), step(1), step(2, NAN), evaluation(2), step(3, 0.05), step(4, NAN), evaluation(4)]
    assert list(alarms(*rows, step(5, 0.05), step(6, None), evaluation(6))) == ["deviation"]


def test_the_deviation_of_groups_is_compared_from_evaluation_to_evaluation():
    rows = [evaluation(0), step(1), step(2), evaluation(2), step(3, 0.05), step(4, 0.05), evaluation(4)]
    assert alarms(*rows) == {}
    assert "5% of what they did at first (1;" in alarms(*rows, step(5, 0.05), evaluation(6))["deviation"]
    assert alarms(*rows, step(5, 0.5), evaluation(6)) == {}
    assert alarms(evaluation(0), step(1, None), evaluation(2), step(3, None), evaluation(4)) == {}


def test_an_alarm_needs_its_condition_for_patience_evaluations_in_a_row():
    bad, good = {"reward": ROSE, "oracle": FELL}, {"reward": ROSE}
    pattern = [evaluation(n, **(bad if hit else good)) for n, hit in enumerate([0, 1, 0, 1, 1, 1, 0])]
    found = {n: monitors.judge(run(monitors__patience=3), pattern[: n + 1]) for n in range(7)}
    assert [n for n in found if found[n].alarms] == [5]
    assert found[5].healthy == 2 and found[6].healthy == 6
    assert [n for n in range(7) if alarms(*pattern[: n + 1], monitors__patience=1)] == [1, 3, 4, 5]


def test_what_has_no_number_raises_no_alarm():
    gone = change(NAN, NAN)
    rows = [evaluation(0, diversity=NAN), *(evaluation(n, reward=gone, oracle=gone, diversity=NAN) for n in (2, 4))]
    assert alarms(*rows, step(5, NAN)) == {}
    null = {"mean": None, "low": None, "high": None, "deviations": None}
    measured = {"quality": {"pairwise": None}, "diversity": None}
    rows = [evaluation(0, **measured), *(evaluation(n, reward=null, oracle=null, **measured) for n in (2, 4))]
    assert alarms(*rows, step(5, None)) == {}


def test_fewer_prompts_than_an_interval_is_from_raise_no_alarm():
    unbounded = {"reward": {**FELL, "low": None, "high": None}, "oracle": {**FELL, "low": None, "high": None}}
    rows = [evaluation(0), *(evaluation(n, **unbounded) for n in (2, 4))]
    assert alarms(*rows) == {}
    rose = {**ROSE, "low": None, "high": None}
    assert alarms(evaluation(0), *(evaluation(n, reward=rose, oracle=FELL) for n in (2, 4))) == {}
    few = {"prompts": 5, "quality": {"pairwise": 0.1}}
    assert alarms(evaluation(0, prompts=5), *(evaluation(n, diversity=0.1, **few) for n in (2, 4))) == {}


def test_an_alarm_calls_prompts_that_are_trained_on_what_they_are():
    rows = [evaluation(0), *(evaluation(n, reward=FELL, diversity=0.1) for n in (2, 4))]
    found = alarms(*rows, evaluation__held_out=False)
    assert "the reward of training prompts fell" in found["reward"] and "held-out" not in str(found)
    assert "diversity of training prompts inside a prompt" in found["diversity"]


# -- what a run does ---------------------------------------------------------------------------------------------------


def hacked(model, folder, say=lambda line: None, found=None, disturb=lambda stages: None, **changes):
    """A run whose trained reward rises and whose watched one falls, from the first step on."""
    settings = small.run(
        model,
        steps=6,
        rewards="[{kind: 'tests.support.custom:Praise'}]",
        evaluation__rewards="[{kind: 'tests.support.custom:Spoilt'}]",
        evaluation__every=1,
        evaluation__count=6,
        checkpoints__keep=1,
        **changes,
    )
    recorder = (
        Recorder.create(LocalFolder(local=folder), settings)
        if found is None
        else opening.resume(LocalFolder(local=folder), settings, say)[0]
    )
    prompts, held_out = session.sources(settings)
    stages = session.stages(settings, local=True, say=say)
    disturb(stages)
    loop = Loop(settings, stages, recorder, prompts=prompts, held_out=held_out, say=say)
    if found is not None:
        loop.restore(found)
    loop.train()
    return loop


def events(folder, kind):
    lines = (folder / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["kind"] == kind]


def names(folder):
    return [path.name for path in checkpoints.all_checkpoints(folder)]


def test_a_warning_is_one_line_one_event_and_in_every_row_while_it_lasts(small_sd, tmp_path):
    lines = []
    loop = hacked(small_sd, tmp_path / "run", say=lines.append)
    assert loop.progress.state == "finished" and loop.progress.step == 6 and not loop.progress.error
    (alarm,) = events(tmp_path / "run", "alarm")
    assert (alarm["step"], alarm["monitor"], alarm["action"]) == (2, "hacking", "warn")
    assert sum("ALARM at step 2, hacking: the held-out reward rose" in line for line in lines) == 1
    rows = [row for row in loop.recorder.metrics() if row["kind"] == "evaluation"]
    assert [list(row["alarms"]) for row in rows] == [[], [], *([["hacking"]] * 5)]


def test_stop_ends_the_run_with_a_checkpoint_the_cause_and_how_to_go_on(small_sd, tmp_path):
    loop = hacked(small_sd, tmp_path / "run", monitors__action="stop", checkpoints__every=5)
    assert loop.progress.state == "stopped" and loop.progress.step == 2
    assert "Spoilt fell" in loop.progress.error and "monitors.action=warn --resume" in loop.progress.error
    assert names(tmp_path / "run") == ["step-000002"]
    assert events(tmp_path / "run", "stopped")[-1]["alarm"] == loop.progress.error


def test_alarms_of_a_step_that_was_thrown_away_stop_nothing_before_it(small_sd, tmp_path):
    def lose_at_the_alarm(stages):
        save, lost = stages.learner.save, []

        def saving(folder, state):
            if state.step == 2 and not lost:
                lost.append(state)
                raise LearnerLostError("killed as it saved")
            save(folder, state)

        stages.learner.save = saving

    changes = {"monitors__action": "stop", "checkpoints__every": 1}
    loop = hacked(small_sd, tmp_path / "run", disturb=lose_at_the_alarm, **changes)
    assert loop.progress.learners_lost == 1 and (loop.progress.state, loop.progress.step) == ("stopped", 2)
    assert events(tmp_path / "run", "stopped")[-1]["step"] == 2 and names(tmp_path / "run") == ["step-000002"]


def test_a_run_killed_before_it_could_say_that_an_alarm_stops_it_stops(small_sd, tmp_path):
    folder = tmp_path / "run"
    hacked(small_sd, folder, monitors__action="stop")
    kept = [line for line in (folder / "events.jsonl").read_text().splitlines() if '"kind": "stopped"' not in line]
    (folder / "events.jsonl").write_text("".join(f"{line}\n" for line in kept))
    loop = hacked(small_sd, folder, found=2, monitors__action="stop")
    assert (loop.progress.state, loop.progress.step) == ("stopped", 2) and "Spoilt fell" in loop.progress.error


def test_a_stopped_run_goes_on_only_with_changed_monitors(small_sd, tmp_path):
    folder = tmp_path / "run"
    first = hacked(small_sd, folder, monitors__action="stop")
    with pytest.raises(AlarmError, match="Spoilt fell"):
        opening.resume(LocalFolder(local=folder), first.run, print)
    assert hacked(small_sd, folder, found=2, monitors__action="warn").progress.state == "finished"


def test_roll_back_ends_at_the_newest_healthy_checkpoint(small_sd, tmp_path):
    folder = tmp_path / "run"
    loop = hacked(small_sd, folder, monitors__action="roll_back", monitors__patience=3, checkpoints__every=1)
    assert loop.progress.state == "stopped" and loop.progress.step == 3
    assert names(folder) == ["step-000000"]  # the condition held from step 1 on
    assert checkpoints.read(checkpoints.newest(folder, print)).version == 0
    assert [path.name for path in (folder / "set-aside").iterdir()] == ["step-000002"]
    assert events(folder, "rolled_back")[-1]["to"] == 0 and "checkpoint of step 0" in loop.progress.error
    assert [row["step"] for row in loop.recorder.metrics() if row["kind"] == "evaluation"] == [0, 1, 2, 3]


def test_a_run_that_was_rolled_back_can_be_taken_up_where_it_is(small_sd, tmp_path):
    folder = tmp_path / "run"
    hacked(small_sd, folder, monitors__action="roll_back")
    loop = hacked(small_sd, folder, found=0, monitors__action="warn")
    assert loop.progress.state == "finished"
    assert [row["step"] for row in loop.recorder.metrics() if row["kind"] == "evaluation"] == list(range(7))


def test_the_command_ends_with_status_3_the_report_and_the_cause(small_sd, tmp_path, command):
    settings = small.run(
        small_sd,
        name="hacked",
        rewards="[{kind: 'tests.support.custom:Praise'}]",
        evaluation__rewards="[{kind: 'tests.support.custom:Spoilt'}]",
        evaluation__every=1,
        evaluation__count=6,
        monitors__action="stop",
    )
    (tmp_path / "config.yaml").write_text(files.dump(settings))
    status, out, error = command("train", "config.yaml", "--local", "steps=5")
    assert status == 3 and "ended by monitors:" in error and "Spoilt fell" in error
    page = (tmp_path / "runs" / "hacked" / "report.html").read_text()
    assert "The run was ended after step 2 of 5 by its monitors" in page and "Alarm at step 2, hacking" in page
    assert "ALARM at step 2" in out
    status, _, error = command("train", "config.yaml", "--local", "steps=5", "--resume")
    assert status == 3 and "Spoilt fell" in error
