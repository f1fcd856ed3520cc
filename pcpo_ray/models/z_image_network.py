"""Z-Image's network over texts of one length (joint.py has the reasons)."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pcpo_ray.models.joint import latents_of, patches_of, places_of_image, places_of_text, through

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
    count, lengths = len(latents), mask.sum(dim=1)
    padded = (lengths + MULTIPLE - 1) // MULTIPLE * MULTIPLE
    time = network.t_embedder(times * network.t_scale).type_as(latents)

    image = network.all_x_embedder[PATCH](patches_of(latents))
    tokens, missing = image.shape[1], -image.shape[1] % MULTIPLE
    image = torch.cat([image, network.x_pad_token.to(image.dtype).expand(count, missing, -1)], dim=1)
    places = places_of_image(padded + 1, latents.shape)
    image_places = _turned(network, torch.nn.functional.pad(places, (0, 0, 0, missing)))  # pad tokens are at 0
    image = through(network, network.noise_refiner, image, None, image_places, time)

    place = torch.arange(embeds.shape[1], device=embeds.device)
    read = (place < padded[:, None])[..., None]
    text = network.cap_embedder(embeds)
    text = torch.where((place < lengths[:, None])[..., None], text, network.cap_pad_token.to(text.dtype)) * read
    text_places = _turned(network, places_of_text(1, embeds.shape[1], places))
    text = through(network, network.context_refiner, text, read[..., 0], text_places)

    seen = torch.cat([torch.ones(count, image.shape[1], dtype=torch.bool, device=image.device), read[..., 0]], dim=1)
    both, turned = torch.cat([image, text], dim=1), torch.cat([image_places, text_places], dim=1)
    both = through(network, network.layers, both, seen, turned, time)
    return latents_of(network.all_final_layer[PATCH](both, c=time)[:, :tokens], latents.shape)


def _turned(network: Any, places: Tensor) -> Tensor:
    """Return the rotations by which tokens at these places are turned."""
    turned: Tensor = network.rope_embedder(places.reshape(-1, 3))
    return turned.reshape(*places.shape[:2], -1)
