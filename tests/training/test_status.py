"""The status of a run that starts."""

from pcpo_ray.training import status
from tests.support import small


def test_a_run_that_starts_says_how_many_workers_it_wants(small_sd):
    found = status.starting(small.run(small_sd, workers__samplers__workers=3), ready={"samplers": 1}).row()
    assert (found["state"], found["samplers"]["wanted"], found["samplers"]["ready"]) == ("starting", 3, 1)
