"""Credit, advantage, objective, prompts and optimizer of a user's own on Ray: the bits of one process."""

import pytest

from pcpo_ray.commands import session
from tests.support.on_ray import on_ray, ranks
from tests.support.plugged import all_own
from tests.support.running import go, parameters, same

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600), pytest.mark.usefixtures("cluster")]


def test_parts_of_ones_own_are_found_on_every_worker_with_the_same_bits(here, small_sd):
    run = all_own(small_sd, rollout__prompts=4)
    session.check(run)
    on_ray(run, here / "ray")
    go(run, here / "local")
    assert same(parameters(here / "ray", 2), parameters(here / "local", 2))


def test_an_optimizer_of_ones_own_steps_on_two_sharded_ranks(here, small_sd):
    recorders = [
        on_ray(all_own(small_sd, workers__learner=ranks(2, "fsdp2")), here / "ray"),
        go(all_own(small_sd), here / "local"),
    ]
    moved = [[row["moved_fraction"] for row in one.metrics() if row["kind"] == "train"] for one in recorders]
    assert moved[0] == pytest.approx(moved[1]) and len(moved[0]) == 2 and moved[0][1] > 0.9
