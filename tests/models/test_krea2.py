"""A distilled Krea 2 has a shift of its own, which its pipeline's config says."""

from pcpo_ray import models
from pcpo_ray.algorithm.schedule import FlowSchedule
from pcpo_ray.commands import session
from tests.support import small


def test_a_distilled_one_has_a_fixed_shift_and_is_warned_of(model, tmp_path, caplog):
    from diffusers import FlowMatchEulerDiscreteScheduler

    folder = small.rewritten(model("krea2"), tmp_path, "model_index.json", is_distilled=True)
    run = small.run(folder, sampling__steps=4)
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25], mu=1.15)
    expected = FlowSchedule(times=tuple(float(time) for time in scheduler.sigmas))
    assert models.schedule_of(folder, run.model, run.sampling) == expected
    assert models.schedule_of(model("krea2"), run.model, run.sampling) != expected
    session.check_steps(run)
    assert "distilled to a few steps" in caplog.text
