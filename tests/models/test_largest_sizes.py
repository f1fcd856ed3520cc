"""Sizes and texts for which a network has no positions are refused by name, before any image is sampled."""

import pytest
import torch

from pcpo_ray import models
from pcpo_ray.commands import session
from pcpo_ray.data.seeds import generator
from pcpo_ray.errors import ModelError
from tests.support import small

CPU = torch.device("cpu")
CONFIG = "transformer/config.json"

CUT = {
    "z_image": ({"axes_lens": [256, 8, 4]}, (32, 16)),
    "lumina2": ({"axes_lens": [300, 4, 2]}, (64, 32)),
    "sd3": ({"pos_embed_max_size": 8}, (32, 32)),
}
"""By kind, a config with few positions, and the largest height and width that it has positions for."""


def checked(folder, height, width):
    """As a run's start has it: nothing is loaded."""
    session.check_steps(small.run(folder, sampling__height=height, sampling__width=width))


@pytest.mark.parametrize("kind", CUT)
def test_beyond_the_positions_of_a_config_a_size_is_refused(kind, model_of_kind, tmp_path):
    changes, (height, width) = CUT[kind]
    folder = small.rewritten(model_of_kind(kind), tmp_path, CONFIG, **changes)
    checked(folder, height, width)
    step = {"z_image": 4, "lumina2": 16, "sd3": 4}[kind]
    for larger in ((height + step, width), (height, width + step)):
        with pytest.raises(ModelError, match=rf"is {larger[0]} x {larger[1]}; .* at most {height} x {width} pixels"):
            checked(folder, *larger)


@pytest.mark.parametrize("kind", ["z_image", "lumina2"])
def test_the_largest_size_allowed_is_predicted_with_the_longest_text(kind, model_of_kind, tmp_path):
    changes, (height, width) = CUT[kind]
    folder = small.rewritten(model_of_kind(kind), tmp_path, CONFIG, **changes)
    run = small.run(folder, sampling__height=height, sampling__width=width)
    denoiser = models.load(run.model, run.sampling, seed=0, device=CPU)
    noise, text = denoiser.initial_noise(generator(0))[None], denoiser.encode(["a ring and " * 60])
    with torch.no_grad():
        assert denoiser.predict(noise, torch.full((1,), 500.0), text).isfinite().all()


@pytest.mark.parametrize(("kind", "most"), [("qwen_image", 2 * (4096 - 512) * 4), ("qwen_image_21", 2 * 1024 * 16)])
def test_beyond_the_positions_that_a_network_computes_a_size_is_refused(kind, most, model_of_kind):
    folder = model_of_kind(kind)
    checked(folder, 64, most)
    with pytest.raises(ModelError, match=rf"at most {most} x {most} pixels"):
        checked(folder, 64, most + 32)


@pytest.mark.parametrize(("kind", "least"), [("z_image", 162), ("lumina2", 257)])
def test_a_config_with_too_few_positions_for_texts_is_refused(kind, least, model_of_kind, tmp_path):
    folder = small.rewritten(model_of_kind(kind), tmp_path, CONFIG, axes_lens=[least - 1, 32, 32])
    run = small.run(folder)
    with pytest.raises(ModelError, match=rf"axes_lens: \[{least - 1}, 32, 32\].* at least {least}, as texts have"):
        models.load(run.model, run.sampling, seed=0, device=CPU)
