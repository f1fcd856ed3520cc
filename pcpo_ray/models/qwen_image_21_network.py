"""Qwen-Image 2.1's network over texts of one length (joint.py has the reasons).

That of diffusers' puts an image after the longest text of the batch. Here it is after its own, as if it were alone.
"""

from typing import Any

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from pcpo_ray.models.joint import through


class Attention:
    """An attention processor of diffusers' for rotations that differ by sample."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Float[Tensor, "B S D"],
        attention_mask: Bool[Tensor, "B 1 S S"],
        rotary_emb: Complex[Tensor, "B S 1 F"],
        **unused: Any,
    ) -> Float[Tensor, "B S D"]:
        query, key, value = (
            layer(hidden_states).unflatten(-1, (attn.heads, -1)) for layer in (attn.to_q, attn.to_k, attn.to_v)
        )
        query, key = (
            _turned(norm(part).to(value.dtype), rotary_emb) for norm, part in ((attn.norm_q, query), (attn.norm_k, key))
        )
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        attended = scaled_dot_product_attention(query, key, value, attn_mask=attention_mask)
        output: Tensor = attn.to_out[0](attended.transpose(1, 2).flatten(2).type_as(hidden_states))
        return output


def _turned(part: Float[Tensor, "B S H D"], by: Complex[Tensor, "B S 1 F"]) -> Float[Tensor, "B S H D"]:
    pairs = torch.view_as_complex(part.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * by).flatten(3).type_as(part)


def forward(
    network: Any,
    latents: Float[Tensor, "B C h w"],
    times: Float[Tensor, " B"],
    embeds: Float[Tensor, "B L D"],
    mask: Bool[Tensor, "B L"],
) -> Float[Tensor, "B C h w"]:
    """Predict the velocity at times from 0, which is the image, to 1. No text is kept from one call to the next."""
    length, device = embeds.shape[1], latents.device
    image, text = network.img_in(latents.flatten(2).transpose(1, 2)), network.txt_in(embeds)
    both = torch.cat([text, image], dim=1)
    place = torch.arange(both.shape[1], device=device)
    is_image = place >= length

    still = times.new_zeros(1 if network.config.causal_condition else 0)  # texts are told that there is no noise
    time = network.time_text_embed(torch.cat([times, still]), both)
    modulation, rows = network.modulation(time), is_image if len(still) else None

    read = torch.cat([mask, torch.ones(image.shape[:2], dtype=torch.bool, device=device)], dim=1)
    seen = ((place <= place[:, None]) | is_image[:, None]) & read[:, None, None]
    turned = _rotations(network, _places(mask, *latents.shape[2:]))
    both = through(network, network.transformer_blocks, both, modulation, turned, seen, rows)
    output: Tensor = network.proj_out(network.norm_out(both[:, length:], time[: len(latents)]))
    return output.transpose(1, 2).reshape(latents.shape)


def _places(mask: Bool[Tensor, "B L"], rows: int, columns: int) -> Tensor:
    """List the tokens' positions: a text's are three times its place, an image's that after its text, row, column."""
    count, length = mask.shape
    text = torch.arange(length, device=mask.device)[:, None].expand(count, -1, 3)
    sides = (torch.arange(side, device=mask.device) - (side - side // 2) for side in (rows, columns))
    grid = torch.stack(torch.meshgrid(*sides, indexing="ij"), dim=-1).reshape(1, -1, 2).expand(count, -1, -1)
    after = mask.sum(dim=1)[:, None, None].expand(-1, grid.shape[1], -1)
    return torch.cat([text, torch.cat([after, grid], dim=2)], dim=1)


def _rotations(network: Any, places: Tensor) -> Complex[Tensor, "B S 1 F"]:
    """Return the rotations by which tokens at these places are turned; negative places count from the end."""
    by_axis = [axis.to(places.device)[places[..., index]] for index, axis in enumerate(network.pos_embed.freqs)]
    return torch.cat(by_axis, dim=-1)[:, :, None]
