"""The small grammar of the embedded world's captions, and their split into training and held-out prompts.

    caption  := thing [position] | thing relation thing
    thing    := ("a" | "an") [size] colour shape
    position := "at the top" | "at the bottom" | "at the left" | "at the right" | "in the center"
    relation := "and" | "above" | "below" | "to the left of" | "to the right of"

At most one of two things has a size in the caption, and the two differ in colour or shape: 57,264 captions in all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Literal

from pcpo_ray.errors import PromptError

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "black")
SIZES = ("small", "large")
RELATIONS = ("and", "above", "below", "to the left of", "to the right of")
POSITIONS = ("at the top", "at the bottom", "at the left", "at the right", "in the center")

Split = Literal["train", "held_out"]
Form = Literal["any", "thing", "placed", "related"]


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One thing that a caption names. `size` is None if the caption leaves it open."""

    shape: str
    colour: str
    size: str | None = None

    @property
    def text(self) -> str:
        """The words of the thing, with the article: "an orange star"."""
        words = " ".join(filter(None, (self.size, self.colour, self.shape)))
        return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


@dataclass(frozen=True, kw_only=True)
class Caption:
    """The content of a caption: one thing, perhaps with a position, or two things and the relation between them."""

    things: tuple[Thing, ...]
    relation: str | None = None
    position: str | None = None

    @property
    def text(self) -> str:
        """The caption in words; `parse` reads it back."""
        between = f" {self.relation} " if self.relation else ""
        return between.join(thing.text for thing in self.things) + (f" {self.position}" if self.position else "")

    @property
    def form(self) -> Form:
        """The form: one thing alone, one thing with a position, or two things and their relation."""
        if self.relation is not None:
            return "related"
        return "thing" if self.position is None else "placed"

    @property
    def split(self) -> Split:
        """The split, by a hash of the text: a tenth is held out, the same on every machine."""
        return "held_out" if hashlib.sha256(self.text.encode()).digest()[0] * 10 < 256 else "train"


def grammar() -> Iterator[Caption]:
    """Yield every caption of the grammar, always in the same order."""
    plain = [Thing(shape=shape, colour=colour) for shape, colour in product(SHAPES, COLOURS)]
    sizes = (None, *SIZES)
    for thing, size, position in product(plain, sizes, (None, *POSITIONS)):
        yield Caption(things=(replace(thing, size=size),), position=position)
    for first, second, relation in product(plain, plain, RELATIONS):
        if first == second:
            continue
        for one, other in product(sizes, sizes):
            if one is None or other is None:
                yield Caption(things=(replace(first, size=one), replace(second, size=other)), relation=relation)


@cache
def _by_text() -> dict[str, Caption]:
    return {caption.text: caption for caption in grammar()}


@cache
def captions(split: Split, form: Form = "any") -> tuple[str, ...]:
    """List the texts of one split and form, in the grammar's order. "train" has about nine tenths, "held_out" the rest.

    Raises PromptError for any other split.
    """
    if split not in ("train", "held_out"):
        raise PromptError(f'got split {split!r}, expected "train" or "held_out"')
    return tuple(
        text for text, caption in _by_text().items() if caption.split == split and form in ("any", caption.form)
    )


def is_caption(text: str) -> bool:
    """Return whether `parse` takes a text."""
    return _plain(text) in _by_text()


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def parse(text: str) -> Caption:
    """Parse a caption; case and spacing do not matter.

    Raises PromptError, saying what the grammar allows, if the text is outside the grammar.
    """
    caption = _by_text().get(_plain(text))
    if caption is None:
        raise PromptError(
            f'got {text!r}, expected a caption of the shapes grammar, like "a red circle above a blue square" or '
            f'"a small green star at the top": one thing with an optional position ({", ".join(POSITIONS)}), or two '
            f"things that differ in colour or shape, joined by one of: {', '.join(RELATIONS)}. A thing is an article, "
            f"an optional size ({', '.join(SIZES)}; for at most one of two things), a colour ({', '.join(COLOURS)}) "
            f"and a shape ({', '.join(SHAPES)})"
        )
    return caption


@cache
def words() -> frozenset[str]:
    """Return every word that captions are made of."""
    phrases = (*SHAPES, *COLOURS, *SIZES, *RELATIONS, *POSITIONS, "a", "an")
    return frozenset(word for phrase in phrases for word in phrase.split())


def unknown_words(text: str) -> list[str]:
    """List the words of a text that no caption has, each once, in the text's order."""
    found = (word.strip(".,;:!?\"'()") for word in text.lower().split())
    return list(dict.fromkeys(word for word in found if word and word not in words()))
