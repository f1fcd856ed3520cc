"""Z-Image's network over texts of one length.

The network of diffusers' takes lists, and pads their texts to the longest of the batch: an image's bits would depend on
what it is batched with, and its sizes on the texts' lengths, which `plan` does not know.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

MULTIPLE = 32
"""Texts and images end in the network's pad tokens up to a multiple of this; these are attended to."""

PATCH = "2-1"
"""The patches of images, 2 x 2 latents, among those that a network may have layers for."""


def forward(
    network: Any,
    latents: Float[Tensor, "B C h w"],
    times: Float[Tensor, " B"],
    embeds: Float[Tensor, "B L D"],
    mask: Bool[Tensor, "B L"],
) -> Float[Tensor, "B C h w"]:
    """Predict the velocity towards the image at times from 0, which is noise, to 1. L is a multiple of MULTIPLE."""

    def through(layers: Any, tokens: Tensor, *rest: Tensor | None) -> Tensor:
        for layer in layers:
            if torch.is_grad_enabled() and network.gradient_checkpointing:
                tokens = network._gradient_checkpointing_func(layer, tokens, *rest)
            else:
                tokens = layer(tokens, *rest)
        return tokens

    count, (rows, columns) = len(latents), (side // 2 for side in latents.shape[2:])
    lengths = mask.sum(dim=1)
    padded = (lengths + MULTIPLE - 1) // MULTIPLE * MULTIPLE
    time = network.t_embedder(times * network.t_scale).type_as(latents)

    patches = (
        latents.reshape(count, -1, rows, 2, columns, 2).permute(0, 2, 4, 3, 5, 1).reshape(count, rows * columns, -1)
    )
    image = network.all_x_embedder[PATCH](patches)
    missing = -image.shape[1] % MULTIPLE
    image = torch.cat([image, network.x_pad_token.to(image.dtype).expand(count, missing, -1)], dim=1)
    image_places = _turned(network, _places_of_image(padded, rows, columns, missing))
    image = through(network.noise_refiner, image, None, image_places, time)

    place = torch.arange(embeds.shape[1], device=embeds.device)
    read = (place < padded[:, None])[..., None]
    text = network.cap_embedder(embeds)
    text = torch.where((place < lengths[:, None])[..., None], text, network.cap_pad_token.to(text.dtype)) * read
    text_places = _turned(network, torch.nn.functional.pad(place[:, None] + 1, (0, 2)).expand(count, -1, -1))
    text = through(network.context_refiner, text, read[..., 0], text_places)

    seen = torch.cat([torch.ones(count, image.shape[1], dtype=torch.bool, device=image.device), read[..., 0]], dim=1)
    both, places = torch.cat([image, text], dim=1), torch.cat([image_places, text_places], dim=1)
    both = through(network.layers, both, seen, places, time)
    output = network.all_final_layer[PATCH](both, c=time)[:, : rows * columns]
    velocity: Tensor = output.reshape(count, rows, columns, 2, 2, -1).permute(0, 5, 1, 3, 2, 4).reshape(latents.shape)
    return velocity


def _places_of_image(padded: Tensor, rows: int, columns: int, missing: int) -> Tensor:
    """List the positions of an image's tokens: the place after its text, row, column; pad tokens are at 0."""
    sides = (torch.arange(side, device=padded.device) for side in (rows, columns))
    grid = torch.stack(torch.meshgrid(*sides, indexing="ij"), dim=-1).reshape(1, -1, 2).expand(len(padded), -1, -1)
    after = (padded + 1)[:, None, None].expand(-1, grid.shape[1], -1)
    return torch.nn.functional.pad(torch.cat([after, grid], dim=2), (0, 0, 0, missing))


def _turned(network: Any, places: Tensor) -> Tensor:
    """Return the rotations by which tokens at these places are turned."""
    turned: Tensor = network.rope_embedder(places.reshape(-1, 3))
    return turned.reshape(*places.shape[:2], -1)
