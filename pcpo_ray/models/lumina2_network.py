"""Lumina-Image 2.0's network over texts of one length (joint.py has the reasons)."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pcpo_ray.models.joint import latents_of, patches_of, places_of_image, places_of_text, through


def forward(
    network: Any,
    latents: Float[Tensor, "B C h w"],
    times: Float[Tensor, " B"],
    embeds: Float[Tensor, "B L D"],
    mask: Bool[Tensor, "B L"],
) -> Float[Tensor, "B C h w"]:
    """Predict the velocity towards the image at times from 0, which is noise, to 1."""
    time, text = network.time_caption_embed(latents, times, embeds)
    image_places = places_of_image(mask.sum(dim=1), latents.shape)
    text_places = places_of_text(0, embeds.shape[1], image_places)
    turned = network.rope_embedder._get_freqs_cis(torch.cat([text_places, image_places], dim=1))
    length = text.shape[1]

    text = through(network, network.context_refiner, text, mask, turned[:, :length])
    image = network.x_embedder(patches_of(latents))
    image = through(network, network.noise_refiner, image, None, turned[:, length:], time)

    seen = torch.cat([mask, torch.ones(image.shape[:2], dtype=torch.bool, device=image.device)], dim=1)
    both = through(network, network.layers, torch.cat([text, image], dim=1), seen, turned, time)
    return latents_of(network.norm_out(both, time)[:, length:], latents.shape)
