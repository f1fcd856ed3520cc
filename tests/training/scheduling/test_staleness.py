"""Admission: never more than may be learned in time, and never less."""

from hypothesis import given
from hypothesis import strategies as st

from pcpo_ray.training.scheduling.staleness import capacity


def test_strictly_on_policy_is_one_batch_at_a_time():
    assert capacity(max_staleness=0, version=0, batch=8, accepted=0, running=0) == 8
    assert capacity(max_staleness=0, version=0, batch=8, accepted=0, running=8) == 0
    assert capacity(max_staleness=0, version=1, batch=8, accepted=8, running=0) == 8


def test_a_resumed_run_counts_what_was_learned_before():
    assert capacity(max_staleness=1, version=10, batch=8, accepted=80, running=0) == 16


@given(staleness=st.integers(0, 4), batch=st.integers(1, 16), steps=st.integers(1, 12))
def test_batches_begun_early_are_sampled_with_the_promised_version(staleness, batch, steps):
    started, version = 0, 0
    while version < steps:
        learned = version * batch
        while (
            started < steps
            and capacity(
                max_staleness=staleness,
                version=version,
                batch=batch,
                accepted=learned,
                running=started * batch - learned,
            )
            >= batch
        ):
            started += 1
            assert version == max(0, started - 1 - staleness)
            assert started - 1 - version <= staleness
        assert started > version, "nothing may be started and nothing is left to learn"
        version += 1
