"""The shapes world, as pretraining sees it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import cache

import numpy as np

from pcpo_ray.commands.pretrain.world import World
from pcpo_ray.shapes import CHECKPOINTS
from pcpo_ray.shapes.captions import COLOURS, POSITIONS, RELATIONS, SHAPES, SIZES, Split, captions, parse, words
from pcpo_ray.shapes.draw import SIDE, draw
from pcpo_ray.shapes.oracle import judge

ONE_THING = 0.35  # fraction of captions with one thing; an even draw over the grammar would show almost none


@cache
def _by_count(split: Split) -> tuple[tuple[str, ...], tuple[str, ...]]:
    ones = tuple(text for text in captions(split) if parse(text).relation is None)
    return ones, tuple(text for text in captions(split) if parse(text).relation is not None)


def sample_captions(rng: np.random.Generator, count: int, split: Split) -> list[str]:
    """`count` caption texts of a split, with repetition; ONE_THING of them name one thing."""
    ones, twos = _by_count(split)
    return [kind[rng.integers(len(kind))] for kind in (ones if one else twos for one in rng.random(count) < ONE_THING)]


def told(text: str) -> list[int]:
    """Return a caption's facts, one class per question: colour, shape and size of either thing, position, relation.

    The class after the last means that the caption does not say.
    """
    caption = parse(text)
    asked: list[tuple[tuple[str, ...], str | None]] = []
    for thing in (*caption.things, None)[:2]:
        colour, shape, size = (None, None, None) if thing is None else (thing.colour, thing.shape, thing.size)
        asked += [(COLOURS, colour), (SHAPES, shape), (SIZES, size)]
    asked += [(POSITIONS, caption.position), (RELATIONS, caption.relation)]
    return [len(words) if said is None else words.index(said) for words, said in asked]


def judged(images: Sequence[np.ndarray], texts: Sequence[str]) -> dict[str, float]:
    """Fraction of images that the oracle finds right in `all` facts, then of facts of each kind."""
    held: dict[str, list[bool]] = defaultdict(list)
    for image, text in zip(images, texts, strict=True):
        verdict = judge(image, text)
        held["all"].append(verdict.right)
        for fact, holds in verdict.facts.items():
            held[fact.split()[0]].append(holds)
    return {kind: float(np.mean(values)) for kind, values in held.items()}


WORLD = World(
    name="shapes",
    checkpoints=CHECKPOINTS,
    height=SIDE,
    width=SIDE,
    vocabulary=tuple(sorted(words())),
    letters=0,
    sample=sample_captions,
    draw=lambda text, seed: draw(parse(text), seed),
    told=told,
    classes=tuple(len(asked) + 1 for asked in (COLOURS, SHAPES, SIZES, COLOURS, SHAPES, SIZES, POSITIONS, RELATIONS)),
    judged=judged,
    vae_channels=(16, 32, 48, 64),
    latent_channels=8,
    unet_channels=(48, 112),
    bars={},
    steps={"vae": 2200, "clip": 3000, "sd": 5000, "flux": 6000},
    reading_steps=150,
)
