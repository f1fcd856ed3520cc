"""Sizes that prompts bring along are checked, or refused by name, before a model is loaded."""

import json

import pytest
import torch
from rich.console import Console

from pcpo_ray.commands import plan, session
from pcpo_ray.commands.plan import page
from pcpo_ray.config import files
from pcpo_ray.errors import ConfigError, ModelError, PromptError, QualityError
from pcpo_ray.models import image_sizes, steps
from pcpo_ray.models.flux import Flux
from pcpo_ray.models.policy import Policy
from pcpo_ray.models.stable_diffusion import StableDiffusion
from tests.support import small

CPU = torch.device("cpu")


class Fixed(StableDiffusion):
    """A denoiser of the user's own that keeps what depends on the size."""

    several_sizes = False


def listed(folder, sizes, name="prompts.jsonl"):
    """A list of prompts with these sizes in turn, as a config's path."""
    rows = [{"prompt": f"a thing, number {n}", **size} for n, size in enumerate(sizes)]
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / name)


def refused(run, error, match):
    with pytest.raises(error, match=match):
        session.check_steps(run)


LARGE = {"height": 32, "width": 16}


def test_a_size_that_the_model_cannot_make_is_named_with_its_row(small_sd, small_sd3, tmp_path):
    wrong = listed(tmp_path, [{}, LARGE, {"height": 18, "width": 16}, {}])
    refused(
        small.run(small_sd, prompts=wrong, evaluation__held_out="false"),
        PromptError,
        r"prompts.jsonl, row 3: height is 18 and width 16.*multiples of 4",
    )
    wide = listed(tmp_path, [{}, {"height": 16, "width": 256}], "wide.jsonl")
    refused(
        small.run(small_sd3, prompts=wide), PromptError, r"row 2: height is 16 and width 256.*at most 96 x 96 pixels"
    )


def test_what_takes_one_size_only_is_refused_by_name(small_sd, tmp_path):
    path = listed(tmp_path, [{}, LARGE] * 2)
    session.check_steps(small.run(small_sd, prompts=path))
    refused(small.run(small_sd, prompts=path, optimizer__micro_batch="auto"), ConfigError, "optimizer.micro_batch is")
    chosen = small.run(small_sd, prompts=path, sampling__batch="auto", objective__old_predictions="recomputed")
    refused(chosen, ConfigError, "sampling.batch is auto")
    own = f"{{kind: custom, denoiser: '{__name__}:Fixed', family: diffusion, path: '{small_sd}'}}"
    refused(small.run(small_sd, prompts=path, model=own), ModelError, "test_image_sizes:Fixed.*one size a run.*leave")
    quality = "{features: {kind: dinov2, model: m}, reference: {kind: base}}"
    with_reference = small.run(small_sd, prompts=path, evaluation__quality=quality, evaluation__images=4)
    refused(with_reference, QualityError, "evaluation.quality.reference is set")


def test_sizes_with_other_trained_steps_are_refused(small_flux, tmp_path, monkeypatch):
    run = small.run(small_flux, prompts=listed(tmp_path, [{}, LARGE] * 2))
    session.check_steps(run)
    planned = steps.plan

    def shorter(kind, sampling, schedule):
        found = planned(kind, sampling, schedule)
        return found.restricted(found.trained[:2]) if sampling.height == 32 else found

    monkeypatch.setattr(steps, "plan", shorter)
    refused(run, PromptError, r"row 2: height is 32 and width 16, where the steps \[0, 1\] are trained.*sampling.shift")


def test_a_model_with_dynamic_shift_has_timesteps_and_credit_a_size(small_flux_dev):
    policy = Policy(small.run(small_flux_dev), CPU)
    own = policy.schedule, policy.credit, policy.denoiser.latent_shape
    large = Policy(small.run(small_flux_dev, sampling__height=64), CPU)
    assert isinstance(policy.denoiser, Flux) and isinstance(large.denoiser, Flux)
    with policy.sized((64, 16)):
        assert policy.schedule == large.schedule != own[0]
        assert policy.credit == large.credit != own[1]
        assert policy.denoiser.latent_shape == large.denoiser.latent_shape
        assert torch.equal(policy.denoiser.places, large.denoiser.places)
    assert (policy.schedule, policy.credit, policy.denoiser.latent_shape) == own
    assert policy.sized(None).__enter__() is None and list(policy.setups) == [(None, False), ((64, 16), False)]


def test_memory_is_planned_at_the_largest_size(small_sd, tmp_path):
    path = listed(tmp_path, [{}, LARGE, {"height": 16, "width": 24}])
    planned = plan.plan(small.run(small_sd, prompts=path))
    assert planned.run == small.run(small_sd, prompts=path, sampling__height=32, sampling__width=16)
    assert planned.largest == (32, 16) and planned.store.images == 4 * 3 * 32 * 16
    console = Console(width=200, record=True)
    page.show(planned, console)
    assert "planned at the largest, 32 x 16" in console.export_text()


def test_a_file_that_is_not_here_is_planned_without_sizes(small_sd, tmp_path):
    data = files.plain(small.run(small_sd, prompts=listed(tmp_path, [LARGE])))
    (tmp_path / "prompts.jsonl").unlink()
    run = files.parse(data)
    assert image_sizes.at_largest(run) == (run, None)
