"""Attention maps: what is read while a network predicts, and that it predicts as ever."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from pcpo_ray import config
from pcpo_ray.models.attention import AttentionMaps
from pcpo_ray.models.policy import Policy
from tests.support import small
from tests.support.families import FAMILIES

CPU = torch.device("cpu")
KINDS = {name: one.attention for name, one in config.BACKBONES.items() if one.attention is not None}
MODELS = {"stable_diffusion": "small_sd", "sdxl": "small_sdxl", "sd3": "small_sd3", "flux": "small_flux"}


@pytest.fixture
def policy(request, tmp_path):
    def of(kind, **changes):
        if kind in MODELS:
            return Policy(small.run(request.getfixturevalue(MODELS[kind]), **changes), CPU)
        height, width = FAMILIES[kind].size
        changes = {"sampling__height": height, "sampling__width": width, **changes}
        return Policy(small.run(FAMILIES[kind].make(tmp_path / kind), **changes), CPU)

    return of


def read(policy, latents, conditioning):
    with torch.no_grad(), AttentionMaps(policy.denoiser.module, KINDS[policy.run.model.kind]) as maps:
        return policy.predict(latents, 1, conditioning), maps.take(len(latents))


def inputs(policy):
    noise = [policy.denoiser.initial_noise(torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    texts = ["a red circle above a blue square", "a green ring left of a red cross"]
    return torch.stack(noise), policy.denoiser.encode(texts)


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_s_map_is_a_part_of_a_distribution(policy, kind, scale):
    made = policy(kind, sampling__guidance_scale=scale)
    latents, conditioning = inputs(made)
    with torch.no_grad():
        expected = made.predict(latents, 1, conditioning)
    prediction, maps = read(made, latents, conditioning)
    assert torch.equal(prediction, expected)
    tokens = conditioning["embeds"].shape[1]
    assert maps and all(one.shape[::2] == (2, tokens) for one in maps)
    for one in maps:
        sums = one.sum(2)
        assert (one >= 0).all() and (sums > 1e-4).all() and (sums <= 1 + 1e-5).all()
        if KINDS[kind] == "cross":
            torch.testing.assert_close(sums, torch.ones_like(sums))
        else:
            assert (sums < 0.999).all()  # the image attends to itself too


@pytest.mark.parametrize("kind", ["stable_diffusion", "sdxl", "sd3", "flux", "sana", "chroma"])
def test_a_map_s_columns_follow_the_prompt_s_tokens(policy, kind):
    """These networks give a prompt's tokens no places: in another order the same maps come in that order."""
    made = policy(kind, sampling__guidance_scale=1.0)
    latents, conditioning = inputs(made)
    _, maps = read(made, latents, conditioning)
    order = torch.randperm(len(conditioning["embeds"][0]), generator=torch.Generator().manual_seed(2))
    moved = {name: row[:, order] if name != "pooled" else row for name, row in conditioning.items()}
    _, again = read(made, latents, moved)
    for one, other in zip(maps, again, strict=True):
        torch.testing.assert_close(one[:, :, order], other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("masked", [None, "bool", "float"])
@pytest.mark.parametrize(("kind", "keys"), [("cross", 3), ("text_first", 8), ("text_last", 8)])
def test_a_map_is_what_torch_s_attention_gives_of_unit_values(masked, kind, keys):
    class Layer(torch.nn.Module):
        to_q = to_k = None

        def forward(self, hidden_states, encoder_hidden_states):
            return scaled_dot_product_attention(query, key, value, attn_mask=mask)

    drawn = torch.Generator().manual_seed(0)
    image, prompt = torch.zeros(2, 5, 6), torch.zeros(2, 3, 6)
    queries = 5 if kind == "cross" else 8
    query, key, value = (torch.randn(2, 4, rows, 6, generator=drawn) for rows in (queries, keys, keys))
    mask = None if masked is None else torch.randn(2, 1, 1, keys, generator=drawn)
    mask = mask > -1 if masked == "bool" else mask
    layer = Layer()
    with AttentionMaps(layer, kind) as maps:
        out = layer(hidden_states=image, encoder_hidden_states=prompt)
        (found,) = maps.take(2)
    assert torch.equal(out, scaled_dot_product_attention(query, key, value, attn_mask=mask))
    units = torch.eye(keys).expand(2, 4, keys, keys)
    whole = scaled_dot_product_attention(query, key, units, attn_mask=mask).mean(1)
    rows = slice(3, 8) if kind == "text_first" else slice(0, 5)
    columns = slice(5, 8) if kind == "text_last" else slice(0, 3)
    torch.testing.assert_close(found, whole[:, rows, columns], rtol=1e-5, atol=1e-6)
