"""The record of a step."""

import numpy as np

from pcpo_ray.data.records import PoolStatus
from pcpo_ray.training.step_record import idle_fractions


def test_idle_is_the_fraction_of_time_not_worked():
    sizes = {role: PoolStatus(wanted=1, ready=1) for role in ("samplers", "scorers")}
    idle = idle_fractions(sizes, {"samplers": 5.0}, 10.0)
    assert idle == {"samplers": 0.5, "scorers": 1.0, "learner": 1.0}
    assert np.isfinite(list(idle.values())).all()
