"""Benchmarks that need Ray: what they measure is there, and adds up."""

import contextlib
import subprocess
import sys

import pytest

from pcpo_ray.commands.bench import backends, crowd, large, layout, results, store, weights
from pcpo_ray.config import files
from pcpo_ray.errors import BenchError
from tests.support import small
from tests.support.part import MORE

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600), pytest.mark.usefixtures("cluster")]


@pytest.mark.parametrize("sync", ["pull", "broadcast"])
def test_new_weights_are_timed_until_four_samplers_have_them(small_sd, sync, monkeypatch):
    monkeypatch.setattr(weights, "NEEDED", 10**18)
    run = weights.measured_on(small.run(small_sd, workers__sync=sync))
    row, full = weights.measure(run, 2, lambda line: None)
    assert row.name.startswith("weights, ") and row.name.endswith(sync)
    assert len(row.figures) == len(row.limits) == 2 and min(*row.figures, *row.limits) > 0
    assert row.goal.of == "figure" and row.goal.value == 0.2
    assert full.name == f"weights, 1.66 GB, {sync}" and full.limit == row.limit and full.goal.value == 3
    assert full.unmeasured.startswith("it takes 1000000000 GB of memory, and ")


def test_a_made_up_network_is_sent_whole_beside_the_configs_adapter(small_sd, monkeypatch):
    monkeypatch.setattr(weights, "NEEDED", 0)
    monkeypatch.setattr(large, "WIDTHS", (64, 64, 64, 64))
    run = weights.measured_on(small.run(small_sd))
    own, whole = weights.measure(run, 2, lambda line: None)
    assert (own.facts["trained"], whole.facts["trained"]) == ("lora", "full")
    assert len(whole.figures) == len(whole.limits) == 2 and min(*whole.figures, *whole.limits) > 0


def test_a_step_is_timed_on_both_backends_and_every_role_says_its_peak(small_sd):
    run = backends.measured_on(small.run(small_sd, rollout__max_staleness=1))
    assert run.rollout.max_staleness == 0
    row, *peaks = backends.measure(run, 1, lambda line: None)
    assert row.ratios == (row.figures[0] / row.limits[0],) and row.facts["images a step"] == 12
    roles = [peak.name.removeprefix("peak memory, ").partition("-")[0] for peak in peaks]
    assert roles[:3] == ["sampler", "scorer", "learner"] and roles[3].startswith("driver")
    assert all(peak.unit == "MiB" and 50 < peak.figures[0] < 10_000 for peak in peaks)


def test_the_object_store_is_measured_in_a_process_whose_ray_has_no_other(small_sd):
    with pytest.raises(BenchError, match="measure in another process"):
        store.measure(store.measured_on(small.run(small_sd)), 1, lambda line: None)


def test_a_crowds_driver_is_measured_while_every_sampler_works(small_sd):
    run = crowd.measured_on(small.run(small_sd))
    with contextlib.closing(crowd.uses(run, 30, 0.2, 0.5)) as uses:
        first, second = next(uses), next(uses)
    for use in (first, second):
        assert use.wall >= 0.5 and use.processor > 0
        assert 0 < use.tasks / use.wall < 2.5 * 30 / 0.1  # each sampler does two tasks in 0.2 s on average
    with pytest.raises(BenchError, match="measure in another process"):
        crowd.measure(run, 1, lambda line: None)


@MORE
@pytest.mark.chaos
def test_512_samples_of_flux_size_pass_through_8_gb_and_nothing_is_spilled(small_sd, tmp_path):
    path, out = tmp_path / "small.yaml", tmp_path / "a.json"
    path.write_text(files.dump(small.run(small_sd)))
    command = [sys.executable, "-m", "pcpo_ray.commands.app", "bench", "store", str(path), "--out", str(out)]
    subprocess.run(command, check=True, timeout=500, capture_output=True, text=True)
    (row,) = results.read(out).benches[0].rows
    assert row.reached and row.figures == (0.0,)
    # predictions of 16 steps in float32, and an image, of each: all of it has been there at once
    sample = 16 * 16 * 64 * 64 * 4 + 512 * 512 * 3
    assert 512 * sample < row.facts["of it taken by the batch at most, MB"] * 1e6 < 1.02 * 512 * sample


@pytest.mark.chaos
def test_layouts_make_the_same_steps_in_turn(small_sd):
    said: list[str] = []
    run = layout.measured_on(small.run(small_sd, rollout__max_staleness=1, optimizer__micro_batch="auto"))
    assert run.rollout.max_staleness == 0 and run.optimizer.micro_batch is None
    rows = {row.name: row for row in layout.measure(run, 2, said.append)}
    assert list(rows) == [
        "split against in-process", "colocated against in-process", "colocated against split",
        "hybrid against the better",
    ]  # fmt: skip
    assert all(len(row.figures) == len(row.limits) == 2 and min(row.figures) > 0 for row in rows.values())
    assert rows["colocated against split"].limits == rows["split against in-process"].figures
    assert sum(line.startswith("repeat") for line in said) == 2
