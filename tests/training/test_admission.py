"""Admission: batches begin as early as staleness and the object store allow, and no earlier."""

from pcpo_ray.commands import session
from pcpo_ray.runs.folder import LocalFolder
from pcpo_ray.training.local import LocalStages
from pcpo_ray.training.loop import Loop
from pcpo_ray.training.recorder import Recorder
from tests.support import small
from tests.support.running import go


def test_one_batch_ahead_learns_from_the_version_before(small_sd, tmp_path):
    recorder = go(small.run(small_sd, steps=3, rollout__max_staleness=1), tmp_path / "run")
    from pyarrow import parquet

    rows = parquet.read_table(tmp_path / "run" / "scores.parquet").to_pylist()
    assert sorted({(row["step"], row["version"]) for row in rows}) == [(1, 0), (2, 0), (3, 1)]
    ratios = [row["max_log_ratio"] for row in recorder.metrics() if row["kind"] == "train"]
    assert ratios[0] == 0 < ratios[1]


def test_what_is_learned_is_never_staler_than_was_allowed(small_sd, tmp_path):
    recorder = go(small.run(small_sd, steps=4, rollout__max_staleness=2), tmp_path / "run")
    from pyarrow import parquet

    rows = parquet.read_table(recorder.folder / "scores.parquet").to_pylist()
    assert sorted({(row["step"], row["version"]) for row in rows}) == [(1, 0), (2, 0), (3, 0), (4, 1)]
    assert [row["sample_age"] for row in recorder.metrics() if row["kind"] == "train"] == [0, 1, 2, 2]


def test_no_more_is_sampled_ahead_than_there_is_room_for(small_sd, tmp_path):
    run, said = small.run(small_sd, steps=4, rollout__max_staleness=2), []
    stages = LocalStages(run)
    stages.rollout_budget = lambda: 2.5 * 3 * loop.dispatcher.counters.largest  # two batches of three groups
    recorder = Recorder.create(LocalFolder(local=tmp_path / "run"), run)
    prompts, held_out = session.sources(run)
    loop = Loop(run, stages, recorder, prompts=prompts, held_out=held_out, say=said.append)
    loop.train()
    ages = [row["sample_age"] for row in recorder.metrics() if row["kind"] == "train"]
    assert loop.dispatcher.counters.largest > 0 and ages == [0, 1, 1, 1]
    assert sum("fewer are sampled ahead than rollout.max_staleness=2 allows" in line for line in said) == 1
