"""Stored runs are read only where they are whole and what the study asks for."""

import dataclasses
import io
import json
import shutil

import numpy as np
import pytest
from rich.console import Console

from pcpo_ray.commands.study import plan, results, table
from pcpo_ray.config import TOTAL
from pcpo_ray.errors import StudyError
from pcpo_ray.runs.intervals import Estimate
from pcpo_ray.training import inputs
from tests.support import stored

GAINS = {"ddpo": 0.1, "pcpo": 0.2}


def made(folder, gains=GAINS, **changes):
    """A study and its runs, all stored."""
    study = stored.study(**changes)
    stored.store(folder, plan.main_runs(study, {}), stored.rising(gains))
    return study


def test_differences_are_taken_seed_by_seed(tmp_path):
    study = made(tmp_path)
    found = results.read(study, tmp_path)
    (one,) = found.comparisons
    assert (one.arm, one.other) == ("pcpo", "ddpo")
    assert one.change.mean == pytest.approx(0.1) and one.change.high - one.change.low < 1e-9
    assert one.p == one.adjusted == 0.25  # the least that 3 seeds can give
    level = found.arms["pcpo"].held_out()[:, -1]
    assert level == pytest.approx([0.71, 0.72, 0.73])


def test_updates_to_a_target_are_interpolated_and_their_ratio_is_the_speed(tmp_path):
    found = results.read(made(tmp_path), tmp_path)
    near, far = (found.reached(found.arms["ddpo"], value).times for value in (0.05, 0.1))
    assert near == pytest.approx([2, 2, 2]) and far == pytest.approx([4, 4, 4])
    (one,) = found.comparisons
    assert [speed.ratio.mean for speed in one.speeds] == pytest.approx([2, 2])
    assert [speed.bound for speed in one.speeds] == ["", ""]


def test_a_target_beyond_the_end_is_a_bound_on_the_page_and_no_number(tmp_path):
    study = made(tmp_path, targets={"kind": "gain", "values": [0.15, 0.3]})
    found = results.read(study, tmp_path)
    (_, targets, *_) = table.tables(found)
    rows = [row[:5] for row in targets.rows]
    assert rows[0] == ["+0.15", "ddpo", "0/3", "> 4", ""]
    assert rows[1][:4] == ["+0.15", "pcpo", "3/3", "3.0"] and rows[1][4].startswith("> 1.33 (")
    assert rows[3] == ["+0.3", "pcpo", "0/3", "> 4", "?"]


def test_a_level_is_a_target_too(tmp_path):
    study = made(tmp_path, targets={"kind": "level", "values": [0.61]})
    found = results.read(study, tmp_path)
    assert found.reached(found.arms["pcpo"], 0.61).times == pytest.approx([2, 1.8, 1.6])


def test_quality_is_read_at_the_same_reward(tmp_path):
    study = stored.study()
    stored.store(tmp_path, plan.main_runs(study, {}), stored.rising(GAINS), quality=True)
    found = results.read(study, tmp_path)
    ddpo, pcpo = (found.arms[name] for name in ("ddpo", "pcpo"))
    own, others = found.matched(pcpo, ddpo)
    assert ddpo.at(TOTAL, others.times) == pytest.approx([0.61, 0.62, 0.63])  # where ddpo ends
    assert pcpo.at(TOTAL, own.times) == pytest.approx([0.61, 0.62, 0.63])
    assert ddpo.at("vendi", others.times).mean() == pytest.approx(6)
    assert pcpo.at("vendi", own.times).mean() == pytest.approx(4)
    assert (pcpo.at("frechet", own.times) == 3).all()
    (matched,) = (one for one in table.tables(found) if "same held-out" in one.title)
    assert matched.heads == ["measure", "pcpo against ddpo"]
    rows = dict(matched.rows)
    assert rows["reward"] == "0.620 (0 ± 0)" and rows["vendi"] == "4.00 (\u22122.00 ± 0)"


def test_evaluations_without_quality_leave_its_columns_out(tmp_path):
    study = stored.study()
    wanted = plan.main_runs(study, {})
    stored.store(tmp_path, wanted[1:], stored.rising(GAINS), quality=True)
    stored.store(tmp_path, wanted[:1], stored.rising(GAINS))
    matched = next(one for one in table.tables(results.read(study, tmp_path)) if "same held-out" in one.title)
    assert [row[0] for row in matched.rows] == ["updates", "reward", "shapes_oracle"]


def test_the_search_keeps_each_arms_best_rate_and_of_equal_ones_the_lowest(tmp_path):
    study = stored.study(search={"rates": [2e-3, 1e-3], "seeds": [8, 9]})
    best = {"ddpo": {2e-3: 0.2, 1e-3: 0.1}, "pcpo": {2e-3: 0.1, 1e-3: 0.1}}
    stored.store(tmp_path, plan.search_runs(study), lambda one, step: step * best[one.arm][one.rate])
    assert results.chosen(study, tmp_path) == {"ddpo": 2e-3, "pcpo": 1e-3}
    rates = {"ddpo": 2e-3, "pcpo": 1e-3}
    stored.store(tmp_path, plan.main_runs(study, rates), stored.rising(GAINS))
    found = results.read(study, tmp_path)
    assert {name: arm.rate for name, arm in found.arms.items()} == rates
    *_, searched = table.tables(found)
    assert searched.rows == [["ddpo", "0.600 *", "0.300"], ["pcpo", "0.300", "0.300 *"]]


def test_a_stored_run_that_began_with_other_files_is_none_of_the_study(tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat")
    study = stored.study(set={"prompts": {"kind": "file", "path": str(prompts)}})
    wanted = plan.main_runs(study, {})
    stored.store(tmp_path, wanted, stored.rising(GAINS))
    began = inputs.dump(inputs.digests(inputs.of_run(wanted[0].run)))
    for one in wanted[1:]:
        (tmp_path / one.run.name / "inputs.json").write_text(began)
    results.check_stored(study, tmp_path, wanted)
    prompts.write_text("a dog")
    with pytest.raises(StudyError) as caught:
        results.check_stored(study, tmp_path, wanted)
    first, *others = str(caught.value).splitlines()
    assert "has 5 runs of other arms; delete them" in first
    said = f"prompts.path: {prompts} is not the file that the run began with"
    assert others == [f"  {one.run.name}: {said}" for one in wanted[1:]]


def test_missing_seeds_are_named(tmp_path):
    study = made(tmp_path)
    shutil.rmtree(tmp_path / "small-pcpo-seed2")
    with pytest.raises(StudyError, match=r"1 of 6 runs are missing or unfinished in .*: pcpo seed 2"):
        results.read(study, tmp_path)


def test_runs_that_are_not_whole_are_missing(tmp_path):
    study = stored.study()
    first, *rest = plan.main_runs(study, {})
    stored.store(tmp_path, rest, stored.rising(GAINS))
    stored.one(tmp_path, first, stored.rising(GAINS), until=2)
    assert not results.finished(tmp_path / first.run.name, first.run)
    with pytest.raises(StudyError, match=r"missing or unfinished in .*: ddpo seed 1;"):
        results.read(study, tmp_path)


def test_a_last_line_that_was_cut_short_is_no_evaluation(tmp_path):
    study = made(tmp_path)
    path = tmp_path / "small-ddpo-seed1" / "metrics.jsonl"
    path.write_text(path.read_text()[:-10])
    with pytest.raises(StudyError, match="ddpo seed 1"):
        results.read(study, tmp_path)


def test_arms_that_were_changed_since_are_named_with_what_changed(tmp_path):
    made(tmp_path)
    changed = stored.study(arms={"ddpo": {}, "pcpo": {"set": {"credit.kind": "reweight"}}})
    with pytest.raises(StudyError) as raised:
        results.read(changed, tmp_path)
    message = str(raised.value)
    assert "3 runs of other arms" in message and "small-pcpo-seed1: objective.kind 'log_hinge' ->" in message
    assert "small-ddpo" not in message and "delete them, or give the study another name" in message


def test_what_does_not_change_the_learning_may_differ(tmp_path):
    study = made(tmp_path)
    other = stored.study(set={"checkpoints.keep": 5, "workers.samplers.threads": 2})
    assert results.read(other, tmp_path).arms == results.read(study, tmp_path).arms


def test_runs_of_another_version_of_the_config_are_named(tmp_path):
    study = made(tmp_path)
    path = tmp_path / "small-pcpo-seed3" / "config.yaml"
    path.write_text(path.read_text() + "abandoned_key: 3\n")
    with pytest.raises(StudyError, match=r"small-pcpo-seed3: .* is not a config of this version(.|\n)*abandoned_key"):
        results.read(study, tmp_path)


def test_runs_made_with_other_versions_are_named(tmp_path):
    study = stored.study()
    first, *rest = plan.main_runs(study, {})
    stored.store(tmp_path, rest, stored.rising(GAINS))
    stored.one(tmp_path, first, stored.rising(GAINS), versions=("pcpo_ray 0.0.1",))
    with pytest.raises(StudyError, match=r"several versions: .*pcpo_ray 0\.0\.1"):
        results.read(study, tmp_path)


def test_weights_that_were_recorded_are_compared_too(tmp_path):
    study = stored.study()
    first, *rest = plan.main_runs(study, {})
    stored.store(tmp_path, rest, stored.rising(GAINS))
    stored.one(tmp_path, first, stored.rising(GAINS), weights=(1.4, 1.4, 9.0))
    with pytest.raises(StudyError, match="stored runs of pcpo and ddpo differ in mean credit weight"):
        results.read(study, tmp_path)


def test_a_run_that_lost_steps_is_named(tmp_path):
    study = made(tmp_path)
    path = tmp_path / "small-ddpo-seed2" / "metrics.jsonl"
    rows = [
        line
        for line in path.read_text().splitlines()
        if (json.loads(line)["kind"], json.loads(line)["step"]) != ("train", 2)
    ]
    path.write_text("\n".join(rows) + "\n")
    with pytest.raises(StudyError, match=r"small-ddpo-seed2 records the steps \[1, 3, 4\]"):
        results.read(study, tmp_path)


def test_an_aa_study_finds_no_more_differences_than_its_level(tmp_path):
    """Whole studies of two equal arms, through the same reading and comparing as real ones."""
    study = stored.study(arms={"one": {}, "same": {}}, seeds=list(range(6)), targets={"kind": "level", "values": [0.6]})
    stored.store(tmp_path, plan.main_runs(study, {}), stored.rising({"one": 0.0, "same": 0.0}))
    rng = np.random.default_rng(0)
    found = results.read(study, tmp_path)
    ends, speeds, intervals = [], [], []
    for _ in range(300):
        levels = {name: np.cumsum(rng.normal(0.05, 0.05, (6, 3)), axis=1) + 0.45 for name in found.arms}
        arms = {name: _with(found.arms[name], levels[name]) for name in found.arms}
        (one,) = results.StudyResults(study, tmp_path, arms, {}, {}).comparisons
        ends.append(one.p)
        speeds.append(one.speeds[0].p)
        intervals.append(one.change.low <= 0 <= one.change.high)
    assert np.mean(np.array(ends) <= 0.05) < 0.1 and np.mean(np.array(speeds) <= 0.05) < 0.1
    assert 0.9 < np.mean(intervals) < 0.99


def _with(arm, levels):
    """The arm with other held-out rewards."""
    found = results.ArmRuns(arm.name, arm.rate, arm.records)
    object.__setattr__(found, "held_out", lambda name="reward": levels)
    return found


@pytest.mark.parametrize(
    "mean, half, text",
    [(0.76, 0.01, "0.760 ± 0.010"), (-0.0123, 0.4, "\u22120.01 ± 0.40"), (12.5, 1.26, "12.5 ± 1.3"),
     (-1.5e-7, 4e-7, "\u22121.5e\u221207 ± 4.0e\u221207"), (0.1, 1e-17, "0.100 ± 0"), (float("nan"), 0.0, "-")],
)  # fmt: skip
def test_a_mean_and_half_of_its_interval_have_two_digits_of_its_width(mean, half, text):
    assert table.within(Estimate(mean=mean, low=mean - half, high=mean + half)) == text


@pytest.mark.parametrize("width", [80, 100])
def test_a_terminal_folds_a_table_that_is_too_wide_and_breaks_no_cell(tmp_path, width):
    found = results.read(made(tmp_path), tmp_path)
    out = io.StringIO()
    table.show(found, Console(file=out, width=width))
    text = out.getvalue()
    lines = [line.rstrip() for line in text.splitlines()]
    assert max(map(len, text.splitlines())) <= width
    for one in table.tables(found):
        for cell in (cell for row in one.rows for cell in row if cell):
            assert cell in text, (one.title, cell)
        assert all(head in text for head in one.heads)
        assert lines[lines.index(one.title) - 1] == "", "a table stands apart from the notes of the one before"
        named = [row[: one.naming] for row in one.rows]
        assert len(set(map(tuple, named))) == len(named), "no two rows have one name"


def test_a_wide_table_names_its_rows_in_each_part():
    wide = table.Table("t", ["arm", "a" * 30, "b" * 30, "c" * 30], [["one", "1", "2", "3"]], [])
    assert table.folded(wide, 80) == [[0, 1, 2], [0, 3]]
    assert table.folded(wide, 200) == [[0, 1, 2, 3]]
    assert table.folded(wide, 10) == [[0, 1], [0, 2], [0, 3]]
    both = dataclasses.replace(wide, naming=2)
    assert table.folded(both, 80) == [[0, 1, 2], [0, 1, 3]] and table.folded(both, 10) == table.folded(both, 80)


def test_a_study_needs_no_targets(tmp_path):
    study = made(tmp_path, targets=None)
    found = results.read(study, tmp_path)
    assert found.comparisons[0].speeds == []
    assert [one.title for one in table.tables(found)][1] == "At the same held-out reward"


def test_a_sole_reward_is_one_row_and_not_two(tmp_path):
    found = results.read(made(tmp_path), tmp_path)
    names = [row[0] for one in table.tables(found) for row in one.rows]
    assert "reward" in names and "clip_score" not in names
