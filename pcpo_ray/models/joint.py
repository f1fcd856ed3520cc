"""Parts of networks over image and text tokens together, called with texts of one length.

Those of diffusers' cut texts to their lengths and pad them to the longest of the batch: an image's bits would depend on
what it is batched with, and its sizes on the texts' lengths, which `plan` does not know.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pcpo_ray.errors import ModelError
from pcpo_ray.models.described import Described

SIDE = 2
"""The latents per side of a patch, which is one token."""


def patches_of(latents: Float[Tensor, "B C h w"]) -> Float[Tensor, "B tokens channels"]:
    """Cut latents into patches, a token each."""
    count, (rows, columns) = len(latents), (side // SIDE for side in latents.shape[2:])
    cut = latents.reshape(count, -1, rows, SIDE, columns, SIDE).permute(0, 2, 4, 3, 5, 1)
    return cut.reshape(count, rows * columns, -1)


def latents_of(patches: Float[Tensor, "B tokens channels"], shape: torch.Size) -> Float[Tensor, "B C h w"]:
    """Put patches together to latents of this shape."""
    rows, columns = (side // SIDE for side in shape[2:])
    cut = patches.reshape(len(patches), rows, columns, SIDE, SIDE, -1)
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(shape)


def places_of_image(first: Int[Tensor, " B"], shape: torch.Size) -> Int[Tensor, "B tokens 3"]:
    """List the positions of an image's tokens: the place after its text, row, column."""
    sides = (torch.arange(side // SIDE, device=first.device) for side in shape[2:])
    grid = torch.stack(torch.meshgrid(*sides, indexing="ij"), dim=-1).reshape(1, -1, 2).expand(len(first), -1, -1)
    return torch.cat([first[:, None, None].expand(-1, grid.shape[1], -1), grid], dim=2)


def places_of_text(first: int, length: int, like: Int[Tensor, "B tokens 3"]) -> Int[Tensor, "B L 3"]:
    """List the positions of a text's tokens from `first` on, for as many texts as `like` has images."""
    place = torch.arange(first, first + length, device=like.device)
    return torch.nn.functional.pad(place[:, None], (0, 2)).expand(len(like), -1, -1)


def check_text_places(description: Described, part: str, axes_lens: Sequence[int], length: int, *, last: int) -> None:
    """Raise ModelError unless a text of `length` tokens, and the image after it, have positions up to `last`."""
    if last >= axes_lens[0]:
        raise ModelError(
            f"{description.folder / part} has axes_lens: {list(axes_lens)}, of which the first is for texts; expected "
            f"at least {last + 1}, as texts have up to {length} tokens (model_max_length of the tokenizer): copy both "
            "again from the model that they were made for"
        )


def through(network: Any, layers: Any, tokens: Tensor, *rest: Tensor | None) -> Tensor:
    """Pass tokens through some of a network's layers, each checkpointed if the network is."""
    for layer in layers:
        if torch.is_grad_enabled() and network.gradient_checkpointing:
            tokens = network._gradient_checkpointing_func(layer, tokens, *rest)
        else:
            tokens = layer(tokens, *rest)
    return tokens
