"""The model of a real size that the benchmark of weights makes up."""

import torch

from pcpo_ray import config, models
from pcpo_ray.commands.bench import large
from pcpo_ray.models import folder_of
from pcpo_ray.models.stable_diffusion import StableDiffusion


def test_it_has_as_many_bytes_as_it_says():
    shipped = config.Model(kind="stable_diffusion", path="shapes-sd")
    with torch.device("meta"):
        made = large.network(folder_of(shipped), large.WIDTHS)
    assert sum(p.numel() * p.element_size() for p in made.parameters()) == large.BYTES
    assert 1.5e9 < large.BYTES < 1.8e9


def test_it_is_loaded_like_any_other_and_trained_whole(tmp_path):
    model = large.write(tmp_path / "large", (64, 64, 64, 64))
    sampling = config.Sampling(steps=2, process=config.Ddim())
    denoiser = models.load(model, sampling, seed=0, device=torch.device("cpu"))
    assert isinstance(denoiser, StableDiffusion)
    assert len(denoiser.trainable()) == len(list(denoiser.pipeline.unet.parameters()))
    latents = denoiser.initial_noise(torch.Generator().manual_seed(0))[None]
    with torch.no_grad():
        assert denoiser.predict(latents, torch.tensor([500.0]), denoiser.fixed_text()).isfinite().all()
