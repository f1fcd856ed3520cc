"""The drawn runs of `make chaos` meet what they have to meet; nothing is run here."""

from collections import Counter

import pytest

from tests.chaos import draws
from tests.chaos.draws import LEARNER, OTHERS, RANKS, RUNS, SAMPLERS_BESIDE, SEED, SHAPES, SPLIT_RUNS, VALUES

SEEDS = [SEED, *range(20)]


def shapes_of(fault):
    """The shapes of a learner in which a fault can happen."""
    return [(2, "fsdp2")] if fault[1] == "assist" else SHAPES


@pytest.mark.parametrize("seed", SEEDS)
def test_sixty_pairs_of_a_fault_and_a_setting_differ(seed):
    drawn = draws.draws(seed)
    pairs = {(fault, one.setting) for one in drawn for fault in one.faults}
    assert len(drawn) == RUNS and len(pairs) >= 60, f"seed {seed}: {len(pairs)} pairs"
    roles = Counter(fault[0] for fault, _ in pairs)
    assert roles.keys() == {"sampler", "scorer", "learner", "driver", "node", "storage"} and min(roles.values()) >= 3


@pytest.mark.parametrize("seed", SEEDS)
def test_every_fault_of_the_learner_meets_every_shape_of_it(seed):
    met = {
        (fault, (one.setting.ranks, one.setting.strategy))
        for one in draws.draws(seed)[:SPLIT_RUNS]
        for fault in one.faults
    }
    missing = {(fault, shape) for fault in LEARNER for shape in shapes_of(fault)} - met
    assert not missing and {fault for fault, _ in met} == {*LEARNER, *OTHERS}, f"seed {seed}"


@pytest.mark.parametrize("seed", SEEDS)
def test_every_value_is_drawn_twice_at_least_for_every_learner(seed):
    settings = [one.setting for one in draws.draws(seed)[:SPLIT_RUNS]]
    for shape in SHAPES:
        mine = [one for one in settings if (one.ranks, one.strategy) == shape]
        for name, values in VALUES.items():
            counts = Counter(getattr(one, name) for one in mine)
            assert counts.keys() == set(values) and min(counts.values()) >= 2, f"seed {seed}: {shape} {name} {counts}"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_run_meets_what_can_happen_to_it_and_each_thing_once(seed):
    drawn = draws.draws(seed)
    for one in drawn:
        assert len(set(one.faults)) == len(one.faults) and all(map(one.setting.allows, one.faults))
    counts = [len(one.faults) for one in drawn[:SPLIT_RUNS]]
    assert max(counts) - min(counts) <= 2, counts


@pytest.mark.parametrize("seed", SEEDS)
def test_ranks_that_sample_meet_each_of_their_faults_in_every_shape(seed):
    lent = draws.draws(seed)[SPLIT_RUNS:]
    assert all(one.setting.samples for one in lent)
    for shape in SHAPES:
        mine = [one for one in lent if (one.setting.ranks, one.setting.strategy) == shape]
        assert [one.setting.samplers for one in mine] == list(SAMPLERS_BESIDE)
        assert {fault for one in mine for fault in one.faults} == set(RANKS)


def test_a_seed_says_all():
    assert draws.draws(3) == draws.draws(3) != draws.draws(4)
