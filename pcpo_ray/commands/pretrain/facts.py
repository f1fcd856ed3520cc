"""Facts that a caption states about its scene, as targets for a linear layer.

The contrast of whole captions alone never taught either tower the places (chance after 3000 steps: neither gains by
learning them before the other has), so both are also asked, through one shared layer, which colours and shapes there
are and where.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pcpo_ray.shapes.captions import COLOURS, SHAPES, Caption

ATTRIBUTES = (*COLOURS, *SHAPES)
TOP, BOTTOM, LEFT, RIGHT, CENTER, ANYWHERE = range(6)
FACTS = 6 * len(ATTRIBUTES)

# Where the first and the second thing are; the places that are then known, of the things and of those not there.
_RELATED = {"above": (TOP, BOTTOM), "below": (BOTTOM, TOP), "to the left of": (LEFT, RIGHT)}
_RELATED["to the right of"] = (RIGHT, LEFT)
_PLACED = {
    "at the top": (TOP, (TOP, BOTTOM, CENTER)),
    "at the bottom": (BOTTOM, (TOP, BOTTOM, CENTER)),
    "at the left": (LEFT, (LEFT, RIGHT, CENTER)),
    "at the right": (RIGHT, (LEFT, RIGHT, CENTER)),
    "in the center": (CENTER, (TOP, BOTTOM, LEFT, RIGHT, CENTER)),
}


def facts(captions: Sequence[Caption]) -> tuple[Float[Tensor, "B F"], Float[Tensor, "B F"]]:
    """For each place and attribute: whether (1 or 0) such a thing is there, and whether (1 or 0) the caption tells."""
    said = torch.zeros(len(captions), 6, len(ATTRIBUTES))
    told = torch.zeros_like(said)
    told[:, ANYWHERE] = 1
    for row, caption in enumerate(captions):
        places: list[list[int]] = [[ANYWHERE] for _ in caption.things]
        if caption.position is not None:
            place, known = _PLACED[caption.position]
            places[0].append(place)
            told[row, list(known)] = 1
        if caption.relation in _RELATED:
            for where, place in zip(places, _RELATED[caption.relation], strict=True):
                where.append(place)
            told[row, list(_RELATED[caption.relation])] = 1
        for thing, where in zip(caption.things, places, strict=True):
            for attribute in (thing.colour, thing.shape):
                said[row, where, ATTRIBUTES.index(attribute)] = 1
    return said.flatten(1), told.flatten(1)


def misread(logits: Float[Tensor, "B F"], said: Float[Tensor, "B F"], told: Float[Tensor, "B F"]) -> Float[Tensor, ""]:
    """Mean cross-entropy of the facts that the captions tell."""
    loss = nn.functional.binary_cross_entropy_with_logits(logits, said, reduction="none")
    mean: Tensor = (loss * told).sum() / told.sum()
    return mean
