"""Benchmarks that need Ray: what they measure is there, and adds up."""

import pytest

from pcpo_ray.bench import backends, weights
from tests import small

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600), pytest.mark.usefixtures("cluster")]


@pytest.mark.parametrize("sync", ["pull", "broadcast"])
def test_new_weights_are_timed_until_four_samplers_have_them(small_sd, sync):
    run = weights.measured_on(small.run(small_sd, workers__sync=sync))
    row, full = weights.measure(run, 2, lambda line: None)
    assert row.name.startswith("weights, ") and row.name.endswith(sync)
    assert len(row.figures) == len(row.limits) == 2 and min(*row.figures, *row.limits) > 0
    assert row.goal.of == "figure" and row.goal.value == 0.2
    assert full.unmeasured.startswith("the config trains 0.0") and full.goal.value == 3


def test_a_step_is_timed_on_both_backends_and_every_role_says_its_peak(small_sd):
    run = backends.measured_on(small.run(small_sd, rollout__max_staleness=1))
    assert run.rollout.max_staleness == 0
    row, *peaks = backends.measure(run, 1, lambda line: None)
    assert row.ratios == (row.figures[0] / row.limits[0],) and row.facts["images a step"] == 12
    roles = [peak.name.removeprefix("peak memory, ").partition("-")[0] for peak in peaks]
    assert roles[:3] == ["sampler", "scorer", "learner"] and roles[3].startswith("driver")
    assert all(peak.unit == "MiB" and 50 < peak.figures[0] < 10_000 for peak in peaks)
