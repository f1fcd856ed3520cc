"""The captions of the words world, and their split into training and held-out words.

    caption := 'the word "' word '"' ["in" ink] ["on" paper]

A word is one of `list.txt`: 3 to 5 letters, in lower case. Ink and paper are colours that stand out from each other. A
tenth of the words is held out: none of their captions is trained on.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from pcpo_ray.errors import PromptError

DARK = ("red", "green", "blue", "purple", "black")
LIGHT = ("yellow", "white")
COLOURS = (*DARK, *LIGHT)
PAIRS = tuple(pair for dark in DARK for light in LIGHT for pair in ((dark, light), (light, dark)))
"""Ink and paper of every image: one dark and one light colour, so that each can be read on the other."""

LONGEST = 5
"""Letters of the longest words."""

Split = Literal["train", "held_out"]

_CAPTION = re.compile(rf'the word "([a-z]{{1,{LONGEST}}})"(?: in ([a-z]+))?(?: on ([a-z]+))?')


@dataclass(frozen=True, kw_only=True)
class Caption:
    """The content of a caption: a word, and its colours if the caption names them."""

    word: str
    ink: str | None = None
    paper: str | None = None

    @property
    def text(self) -> str:
        """The caption in words; `parse` reads it back."""
        ink = f" in {self.ink}" if self.ink else ""
        return f'the word "{self.word}"{ink}' + (f" on {self.paper}" if self.paper else "")

    @property
    def split(self) -> Split:
        """The split, by a hash of the word: a tenth is held out, the same on every machine."""
        return "held_out" if hashlib.sha256(self.word.encode()).digest()[0] * 10 < 256 else "train"

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The pairs of ink and paper that the caption allows."""
        return [(ink, paper) for ink, paper in PAIRS if self.ink in (None, ink) and self.paper in (None, paper)]


@cache
def words() -> tuple[str, ...]:
    """List the words, in alphabetical order."""
    return tuple((Path(__file__).parent / "list.txt").read_text(encoding="utf-8").split())


@cache
def words_of(split: Split) -> tuple[str, ...]:
    """List the words of one split, in alphabetical order. Raises PromptError for any other split."""
    if split not in ("train", "held_out"):
        raise PromptError(f'got split {split!r}, expected "train" or "held_out"')
    return tuple(word for word in words() if Caption(word=word).split == split)


def colours() -> Iterator[tuple[str | None, str | None]]:
    """Yield what captions say of ink and paper: nothing, one of them, or both."""
    yield None, None
    yield from ((ink, None) for ink in COLOURS)
    yield from ((None, paper) for paper in COLOURS)
    yield from PAIRS


@cache
def captions(split: Split) -> tuple[str, ...]:
    """List the texts of one split, word by word. Raises PromptError for any other split."""
    said = tuple(colours())
    return tuple(Caption(word=word, ink=ink, paper=paper).text for word in words_of(split) for ink, paper in said)


@cache
def _known() -> frozenset[str]:
    return frozenset(words())


def spelled(text: str) -> Caption | None:
    """Read a caption of any letters, a word of the list or not; None for another text."""
    found = _CAPTION.fullmatch(" ".join(text.lower().split()))
    if found is None:
        return None
    word, ink, paper = found.groups()
    caption = Caption(word=word, ink=ink, paper=paper)
    return caption if caption.pairs else None


def _read(text: str) -> Caption | None:
    caption = spelled(text)
    return caption if caption is not None and caption.word in _known() else None


def is_caption(text: str) -> bool:
    """Return whether `parse` takes a text."""
    return _read(text) is not None


def parse(text: str) -> Caption:
    """Parse a caption; case and spacing do not matter.

    Raises PromptError, saying what is allowed, if the text is no caption of this world.
    """
    caption = _read(text)
    if caption is None:
        raise PromptError(
            f"got {text!r}, expected a caption of the words world, like 'the word \"moon\" in red on white': a word "
            f'of the {len(words())} in pcpo_ray/words/list.txt, and after it, if you like, "in" or "on" a colour '
            f"({', '.join(COLOURS)}), one light and one dark"
        )
    return caption


def unknown_words(text: str) -> list[str]:
    """List the words of a text that no caption has, each once, in the text's order."""
    known = {"the", "word", "in", "on", *COLOURS, *_known()}
    found = (word.strip(".,;:!?\"'()") for word in text.lower().split())
    return list(dict.fromkeys(word for word in found if word and word not in known))
