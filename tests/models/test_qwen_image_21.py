"""Qwen-Image 2.1's own times, its VAE, and what of its texts is cut."""

import pytest
import torch

from pcpo_ray import models
from pcpo_ray.algorithm.schedule import FlowSchedule
from pcpo_ray.commands import session
from pcpo_ray.errors import ModelError
from tests.support import small

SIGMAS = [1.0, 0.9, 0.5, 0.2]


def schedule_of(run):
    return models.schedule_of(models.folder_of(run.model), run.model, run.sampling)


def test_its_own_times_are_the_only_ones_and_it_is_warned_of(model, tmp_path, caplog):
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    folder = small.rewritten(model("qwen_image_21"), tmp_path, "model_index.json", sample_sigmas=SIGMAS)
    size = {"sampling__height": 64, "sampling__width": 32}
    run = small.run(folder, sampling__steps=4, **size)
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    scheduler.set_timesteps(sigmas=SIGMAS, mu=calculate_shift(4 * 2))
    assert schedule_of(run) == FlowSchedule(times=tuple(float(time) for time in scheduler.sigmas))
    session.check_steps(run)
    assert "distilled to a few steps" in caplog.text
    with pytest.raises(ModelError, match=r"sampling\.steps is 5, .* takes 4 at times of its own.*steps=4"):
        schedule_of(small.run(folder, sampling__steps=5, **size))
    shifted = small.run(folder, sampling__steps=5, sampling__shift=3.0, **size)
    assert schedule_of(shifted) == FlowSchedule.shifted(steps=5, shift=3.0)


def test_a_vae_with_which_its_pipeline_does_not_reckon_is_refused(model, tmp_path):
    folder = small.rewritten(model("qwen_image_21"), tmp_path, "vae/config.json", dim_mult=[1, 1])
    with pytest.raises(ModelError, match=r"latents of 2 pixels a side; expected 16"):
        schedule_of(small.run(folder))


def test_texts_are_cut_to_one_length_and_keep_their_beginning(model):
    run = small.run(model("qwen_image_21"), sampling__height=32, sampling__width=32)
    denoiser = models.load(run.model, run.sampling, seed=0, device=torch.device("cpu"))
    found = denoiser.encode(["a ring" + " and a star" * count for count in (0, 30, 40)])
    short, long, longer = found["mask"].sum(dim=1).tolist()
    assert short < 160 == long == longer
    assert torch.allclose(found["embeds"][1], found["embeds"][2], atol=1e-5)
