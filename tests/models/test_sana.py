"""SANA's published solver is understood for its shift, and what it may not mean is refused by name."""

import pytest

from pcpo_ray import models
from pcpo_ray.algorithm.schedule import FlowSchedule
from pcpo_ray.errors import ModelError
from pcpo_ray.models import schedulers
from tests.support import small


def schedule_of(folder):
    run = small.run(folder, sampling__steps=4)
    return models.schedule_of(models.folder_of(run.model), run.model, run.sampling)


def test_its_schedule_is_eulers_with_its_solvers_shift(model, tmp_path):
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(4)
    expected = FlowSchedule(times=tuple(float(time) for time in scheduler.sigmas))
    assert schedule_of(model("sana")) == expected
    other = small.rescheduled(model("sana"), tmp_path, flow_shift=1.5)
    assert schedule_of(other) != expected


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prediction_type": "epsilon"}, "the network predicts no velocity"),
        ({"use_flow_sigmas": False}, "the model is a diffusion model"),
        ({"use_karras_sigmas": True}, "the solver places its steps elsewhere"),
        ({"secret": 1}, r"has \['secret'\]"),
    ],
)
def test_a_solver_of_another_model_is_refused(model, tmp_path, changes, words):
    with pytest.raises(ModelError, match=words):
        schedule_of(small.rescheduled(model("sana"), tmp_path, **changes))


def test_only_what_says_that_it_is_a_flow_is_one():
    with pytest.raises(ModelError, match="predicts no velocity"):
        schedulers.as_euler({"_class_name": "DPMSolverMultistepScheduler", "flow_shift": 3.0})


@pytest.mark.parametrize("kind", ["sana", "qwen_image"])
def test_a_network_that_is_told_the_guidance_scale_is_refused(model, tmp_path, kind):
    folder = small.rewritten(model(kind), tmp_path, "transformer/config.json", guidance_embeds=True)
    with pytest.raises(ModelError, match=r"guidance_embeds.*expected false"):
        schedule_of(folder)
