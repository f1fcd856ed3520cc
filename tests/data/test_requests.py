"""What is asked of a run is checked where it is asked."""

import pytest

from pcpo_ray.data.requests import Request
from pcpo_ray.errors import ClusterError


@pytest.mark.parametrize("asked", [{"samplers": 0}, {"scorers": -1}, {"max_staleness": -1}])
def test_a_request_that_no_run_can_follow_is_refused_at_who_asks(asked):
    with pytest.raises(ClusterError, match="expected at least"):
        Request(**asked)


def test_only_what_was_asked_for_is_recorded():
    assert Request(max_staleness=0).asked == {"max_staleness": 0}
    assert Request(samplers=2, stop=True).asked == {"samplers": 2, "stop": True}
