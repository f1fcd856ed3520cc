"""A model made of its configs alone has the sizes of the real one, to the byte."""

import sys
from pathlib import Path

import pytest
import torch

from pcpo_ray import models
from pcpo_ray.algorithm import objective
from pcpo_ray.commands.bench import published
from pcpo_ray.commands.plan.hollow import Hollow, size_of, size_of_module
from pcpo_ray.commands.plan.live import Live
from pcpo_ray.data.seeds import generator
from pcpo_ray.errors import ModelError
from tests.support import small

CPU = torch.device("cpu")
GUIDED = {"sampling__guidance_scale": 2.0}
ALL = [
    ("small_sd", GUIDED),
    ("small_sd", {"model__train": "{kind: full}", "model__dtype": "bfloat16"}),
    ("small_sdxl", {**GUIDED, "model__dtype": "float16"}),
    ("small_sd3", {**GUIDED, "sampling__detach_unconditional": "true"}),
    ("small_flux", {"model__dtype": "float16"}),
    ("small_flux", {"model__train": "{kind: lora, rank: 4, targets: [to_q, proj_mlp]}"}),
]


def both(request, fixture, changes, **more):
    run = small.run(request.getfixturevalue(fixture), **changes, **more)
    return run, Hollow(run.model, run.sampling), models.load(run.model, run.sampling, seed=0, device=CPU)


@pytest.mark.parametrize(("fixture", "changes"), ALL)
def test_its_parts_and_its_texts_have_the_sizes_of_the_loaded_models(request, fixture, changes):
    _, hollow, loaded = both(request, fixture, changes)
    encoded = loaded.encode(["a red circle"])
    here = {name: part for name, part in loaded.pipeline.components.items() if isinstance(part, torch.nn.Module)}
    assert {name: size_of_module(part) for name, part in hollow.parts.items()} == {
        name: size_of_module(part) for name, part in here.items()
    }
    assert {n: (p.shape, p.dtype) for n, p in hollow.trained.items()} == {
        n: (p.shape, p.dtype) for n, p in loaded.trainable().items()
    }
    assert {n: (t.shape, t.dtype) for n, t in hollow.encoded[0].items()} == {
        n: (t.shape, t.dtype) for n, t in encoded.items()
    }
    assert hollow.latents == size_of(loaded.initial_noise(generator(0)))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("fixture", "changes"), [ALL[0], ALL[1], ALL[3], ALL[5]])
def test_passes_take_what_they_take_with_data(request, fixture, changes, checkpointing):
    run, hollow, loaded = both(request, fixture, changes, model__gradient_checkpointing=str(checkpointing).lower())
    rows = 6
    latents = torch.stack([loaded.initial_noise(generator(n)) for n in range(rows)])
    old, noise, advantage = torch.zeros_like(latents), torch.zeros_like(latents), torch.ones(rows)
    conditioning = {name: row.expand(rows, *row.shape[1:]) for name, row in loaded.encode(["a red circle"]).items()}
    timesteps = torch.full((rows,), float(loaded.schedule(run.sampling.steps).timesteps[0]))
    loaded.module.eval()
    with torch.no_grad(), Live("cuda") as predicted:
        loaded.predict(latents, timesteps, conditioning)
    with torch.no_grad(), Live("cuda") as decoded:
        loaded.pixels(latents)
    for parameter in loaded.trainable().values():
        parameter.grad = torch.zeros_like(parameter)
    with Live("cuda") as learned:
        prediction = loaded.predict(latents, timesteps, conditioning)
        ratio = objective.log_ratio(prediction, old, noise, weight=1.0, sign=1.0)
        objective.log_hinge(ratio, advantage, clip_range=1.0).sum().backward()
    assert hollow.predicting(rows, mixed=False, gpu=True) == pytest.approx(predicted.peak, rel=0.01)
    assert hollow.decoding(rows, gpu=True) == pytest.approx(decoded.peak, rel=0.01)
    assert hollow.learning(rows, mixed=False, kl=False, gpu=True) == pytest.approx(learned.peak, rel=0.01)
    if checkpointing:
        plain = small.run(request.getfixturevalue(fixture), **changes)
        other = Hollow(plain.model, plain.sampling)
        assert learned.peak < other.learning(rows, mixed=False, kl=False, gpu=True)


@pytest.mark.parametrize(
    ("write", "kind", "sizes"),
    [
        (published.stable_diffusion, "stable_diffusion", {"unet": 859_520_964, "vae": 83_653_863}),
        (published.flux, "flux", {"transformer": 11_901_408_320, "vae": 83_819_683, "text_encoder_2": 4_762_310_656}),
    ],
)
def test_published_models_have_their_published_sizes_without_their_memory(tmp_path, write, kind, sizes):
    changes = {"model__kind": kind, "model__train": "{kind: full}", "sampling__height": 512, "sampling__width": 512}
    flow = {"sampling__process": "{kind: constant_noise}", "credit__kind": "proportionate"} if kind == "flux" else {}
    run = small.run(write(tmp_path / "model"), **changes, **flow)
    hollow = Hollow(run.model, run.sampling)
    counted = {name: sum(p.numel() for p in hollow.parts[name].parameters()) for name in sizes}
    assert counted == sizes
    assert not list((tmp_path / "model").rglob("*.safetensors"))


def test_weights_are_not_looked_for_and_configs_are(small_flux, tmp_path):
    folder = small.without_weights(small_flux, tmp_path / "small-flux")
    run = small.run(folder)
    assert size_of_module(Hollow(run.model, run.sampling).network) > 0
    (folder / "vae" / "config.json").write_text('{"_class_name": "AutoencoderKL", "block_out_channels": "many"}')
    with pytest.raises(ModelError, match=r"vae: no AutoencoderKL can be made of its config"):
        Hollow(run.model, run.sampling)
    (folder / "transformer" / "config.json").unlink()
    with pytest.raises(ModelError, match="transformer"):
        Hollow(run.model, run.sampling)
    with pytest.raises(ModelError, match=r"absent/model.*no such folder"):
        Hollow(small.run(tmp_path / "absent" / "model").model, run.sampling)


OWN = """
from pcpo_ray.models.stable_diffusion import StableDiffusion

class Picky(StableDiffusion):
    def forward(self, latents, timesteps, conditioning):
        if float(latents.mean()) > 0:
            latents = -latents
        return super().forward(latents, timesteps, conditioning)
"""


def test_a_model_that_looks_at_its_data_cannot_be_planned_and_says_so(small_sd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("picky.py").write_text(OWN)
    run = small.run(small_sd, model__kind="custom", model__denoiser="picky:Picky", model__family="diffusion")
    hollow = Hollow(run.model, run.sampling)
    with pytest.raises(ModelError, match="a prediction cannot be run without data"):
        hollow.predicting(2, mixed=False, gpu=False)
