"""Captions with one fact changed, each plainly false for every image of the caption it came from."""

from __future__ import annotations

from dataclasses import replace

from pcpo_ray.shapes.captions import COLOURS, POSITIONS, RELATIONS, SHAPES, SIZES, Caption

_OPPOSITE = {"at the top": "at the bottom", "at the left": "at the right"}
_OPPOSITE |= {other: one for one, other in _OPPOSITE.items()}


def variants(caption: Caption) -> dict[str, list[Caption]]:
    """All of them, by the kind of fact that changed: colour, shape, size, swap (of two colours), position, relation.

    Positions change to ones an image cannot have at once (the top to the bottom, never to the left); "and" has no
    contrary, so it stays.
    """
    things = caption.things
    found: dict[str, list[Caption]] = {
        "colour": [],
        "shape": [],
        "size": [],
        "swap": [],
        "position": [],
        "relation": [],
    }
    for index, thing in enumerate(things):
        changed = {
            "colour": [replace(thing, colour=colour) for colour in COLOURS if colour != thing.colour],
            "shape": [replace(thing, shape=shape) for shape in SHAPES if shape != thing.shape],
            "size": [replace(thing, size=size) for size in SIZES if thing.size and size != thing.size],
        }
        for kind, others in changed.items():
            found[kind] += [replace(caption, things=(*things[:index], o, *things[index + 1 :])) for o in others]
    if len(things) == 2 and things[0].colour != things[1].colour and things[0].shape != things[1].shape:
        first, second = things
        swapped = (replace(first, colour=second.colour), replace(second, colour=first.colour))
        found["swap"].append(replace(caption, things=swapped))
    if caption.position == "in the center":
        found["position"] = [replace(caption, position=p) for p in POSITIONS if p != caption.position]
    elif caption.position:
        found["position"] = [replace(caption, position=_OPPOSITE[caption.position])]
    if caption.relation not in (None, "and"):
        found["relation"] = [replace(caption, relation=r) for r in RELATIONS if r not in ("and", caption.relation)]
    return {kind: kept for kind, others in found.items() if (kept := [o for o in others if _distinct(o)])}


def _distinct(caption: Caption) -> bool:
    return len({(thing.shape, thing.colour) for thing in caption.things}) == len(caption.things)
