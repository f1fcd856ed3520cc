"""Prompt sources (the embedded worlds' captions, files, the user's own code) and the held-out split.

`batch(step)` depends on the seed and the step alone: epochs are seeded permutations, one after the other. Any step's
prompts are found without drawing the earlier ones, and a resumed run needs no cursor but its step.
"""

import hashlib
import itertools
import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from pcpo_ray.config import CustomPrompts, EmbeddedPrompts, Prompts, Run, ShapesPrompts, WordsPrompts
from pcpo_ray.data.prompt_files import read
from pcpo_ray.data.seeds import seed_of
from pcpo_ray.data.types import Prompt, Size
from pcpo_ray.errors import PromptError
from pcpo_ray.process.own import PlugPoint

OWN = PlugPoint(noun="prompts", method="prompts", arguments=(), returns="the prompts, as texts", error=PromptError)
"""Prompts of the user's own: all of them, in an order that is the same at every start."""

MOST = 10_000_000
"""Most prompts that are taken from the user's own code, so that one that never ends is noticed."""

HELD_OUT = 0.1
"""Fraction of a file's texts that is held out if the config names no evaluation prompts."""
FEWEST = 32
"""Fewest texts of a file that are held out, or half of a file that has fewer than twice as many."""
INVISIBLE = "Cf"
"""Unicode's category of characters that only guide layout: byte order marks, zero-width spaces, soft hyphens."""
SHOWN = 3
"""Number of prompts that a message names."""


class PromptSource:
    """Texts in a seeded order. Raises PromptError if there are none.

    `sizes` are those of their images, one for each text, or none at all; `places` say where each size first stands.
    """

    def __init__(
        self,
        texts: Sequence[str],
        *,
        seed: int,
        origin: str,
        sizes: Sequence[Size | None] = (),
        places: Mapping[Size, str] | None = None,
    ) -> None:
        if not texts:
            raise PromptError(f"{origin} holds no prompts; expected at least one")
        self.texts = texts
        self.seed = seed
        self.origin = origin
        self.sizes = sizes
        self.places = places or {}

    def __len__(self) -> int:
        return len(self.texts)

    def batch(self, step: int, size: int) -> list[Prompt]:
        """Give the `size` prompts of step `step` (counted from 1): the same ones in every process, at every time."""
        if step < 1:
            raise PromptError(f"step is {step}; steps count from 1")
        return [self._at(position) for position in range((step - 1) * size, step * size)]

    def distinct(self, count: int) -> list[Prompt]:
        """Give the first `count` prompts with different texts, or all if fewer: a repeated text is no second sample."""
        first: dict[str, Prompt] = {}
        for position in range(len(self.texts)):
            if len(first) == count:
                break
            prompt = self._at(position)
            first.setdefault(normalised(prompt.text), prompt)
        return list(first.values())

    def _at(self, position: int) -> Prompt:
        epoch, place = divmod(position, len(self.texts))
        index = int(_permutation(self.seed, epoch, len(self.texts))[place])
        return Prompt(index=index, text=self.texts[index], size=self.sizes[index] if self.sizes else None)

    def part(self, indices: Sequence[int], origin: str) -> "PromptSource":
        """Make a source of some of the prompts."""
        sizes = [self.sizes[index] for index in indices] if self.sizes else []
        return PromptSource(
            [self.texts[index] for index in indices],
            seed=self.seed,
            origin=origin,
            sizes=sizes,
            places={size: where for size, where in self.places.items() if size in sizes},
        )


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng(seed_of(seed, "prompts", epoch)).permutation(size)


def load(config: Prompts, *, seed: int) -> PromptSource:
    """Make the prompt source that a config names. Raises PromptError naming the file and what is wrong with it."""
    if isinstance(config, CustomPrompts):
        return PromptSource(own_texts(config), seed=seed, origin=config.kind)
    if isinstance(config, ShapesPrompts):
        from pcpo_ray.shapes import captions

        texts = list(captions.captions(config.split, config.form))
        return PromptSource(texts, seed=seed, origin=f"shapes ({config.split}, {config.form})")
    if isinstance(config, WordsPrompts):
        from pcpo_ray.words import captions as words

        return PromptSource(words.captions(config.split), seed=seed, origin=f"words ({config.split})")
    found = read(config.file, config.column)
    return PromptSource(found.texts, seed=seed, origin=config.path, sizes=found.sizes, places=found.places)


def own_texts(config: CustomPrompts) -> list[str]:
    """Ask the user's own code for its prompts. Raises PromptError unless they are texts, and not endless."""
    made = OWN.make(config.kind, config.options)
    returned = OWN.call(made, config.kind)
    if isinstance(returned, str):
        raise PromptError(f"prompts {config.kind!r} returned one text, {returned!r:.100}; expected a list of texts")
    try:
        found = list(itertools.islice(returned, MOST + 1))
    except Exception as error:  # an iterator of the user's own may raise anything
        raise OWN.failed(config.kind, error) from error
    if len(found) > MOST:
        raise PromptError(f"prompts {config.kind!r} returned more than {MOST} prompts; expected a list that ends")
    for place, text in enumerate(found):
        if not isinstance(text, str) or not text.strip():
            raise PromptError(
                f"prompts {config.kind!r} returned {text!r:.100} at place {place}; expected a text that is not empty"
            )
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise PromptError(
                f"prompts {config.kind!r} returned half of a surrogate pair at place {place} ({text!r:.100}); "
                "expected a text that UTF-8 can write"
            )
    return [text.strip() for text in found]


def check_own(config: Prompts | None) -> None:
    """Check that the user's own code gives the same prompts twice: a resumed run asks again. Raises PromptError."""
    if not isinstance(config, CustomPrompts):
        return
    first, second = own_texts(config), own_texts(config)
    if first != second:
        place = next((n for n, both in enumerate(zip(first, second, strict=False)) if both[0] != both[1]), None)
        raise PromptError(
            f"prompts {config.kind!r} returned {len(first)} prompts, then {len(second)}"
            + ("" if place is None else f", which differ from place {place} on ({first[place]!r}, {second[place]!r})")
            + "; return the same ones in the same order each time, as a resumed run asks again"
        )


# -- training prompts and held-out prompts -----------------------------------------------------------------------------


def normalised(text: str) -> str:
    """Normalise a text: one form of each character, none that is invisible, no case, single spaces.

    Equal results count as one prompt.
    """
    if not text.isascii():
        composed = unicodedata.normalize("NFKC", text)
        text = "".join(character for character in composed if unicodedata.category(character) != INVISIBLE)
    return " ".join(text.casefold().split())


def sources(run: Run) -> tuple[PromptSource, PromptSource]:
    """Find the prompts that a run trains on, and those of its evaluations.

    If the config names no evaluation prompts, they are an embedded world's captions of the other split, or a part of
    the file (`split`), which is then not trained on. With evaluation.held_out=false they are the training prompts.
    Raises PromptError if prompts that should be held out are trained on.
    """
    asked = run.evaluation.prompts
    training = load(run.prompts, seed=run.seed)
    if asked is None and not run.evaluation.held_out:
        return training, training
    if asked is None and isinstance(run.prompts, EmbeddedPrompts):
        return training, load(_other(run.prompts), seed=run.seed)
    if asked is None:
        left, held_out = split(training.texts, training.origin)
        return (
            training.part(left, training.origin),
            training.part(held_out, f"the held-out part of {training.origin}"),
        )
    evaluated = load(asked, seed=run.seed)
    if not (isinstance(run.prompts, EmbeddedPrompts) and asked == _other(run.prompts)):
        _check_apart(run, training, evaluated)
    return training, evaluated


def _other(prompts: EmbeddedPrompts) -> EmbeddedPrompts:
    """Name the captions of the other split, of any form."""
    return type(prompts)(split="held_out" if prompts.split == "train" else "train")


def split(texts: Sequence[str], origin: str) -> tuple[list[int], list[int]]:
    """Split the texts into those to train on and those held out, which are the distinct texts with the lowest hashes.

    Returns their indices.

    A text is held out if its hash is below `HELD_OUT`, so other texts do not move it. At least `FEWEST` are held out,
    or half of a small file. A text is held out with all its repeats. Raises PromptError for a single distinct text.
    """
    places = {text: _hash(text) for text in map(normalised, texts)}
    if len(places) < 2:
        raise PromptError(
            f"{origin} has {len(places)} distinct prompt, and a part of them is to be held out for evaluations; add "
            "prompts, give evaluation.prompts, or set evaluation.held_out=false to evaluate on training prompts"
        )
    tenth = sum(place < HELD_OUT for place in places.values())
    count = min(max(tenth, min(FEWEST, len(places) // 2)), len(places) - 1)
    held_out = set(sorted(places, key=lambda text: (places[text], text))[:count])
    parts: tuple[list[int], list[int]] = ([], [])
    for index, text in enumerate(texts):
        parts[normalised(text) in held_out].append(index)
    return parts


def _hash(text: str) -> float:
    """Map a text to a number between 0 and 1, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64


def _check_apart(run: Run, training: PromptSource, evaluated: PromptSource) -> None:
    """Raise PromptError if evaluation.held_out does not say whether evaluation prompts are training prompts."""
    trained = set(map(normalised, training.texts))
    both = [text for text in dict.fromkeys(evaluated.texts) if normalised(text) in trained]
    if both and run.evaluation.held_out:
        raise PromptError(
            f"{len(both)} of {len(set(evaluated.texts))} evaluation prompts ({evaluated.origin}) are training prompts "
            f"({training.origin}): {_named(both)}; take them out of one of the two, leave evaluation.prompts out to "
            "hold a part of the training prompts out, or set evaluation.held_out=false (then no page says held-out)"
        )
    if not both and not run.evaluation.held_out:
        raise PromptError(
            f"evaluation.held_out is false, and none of the evaluation prompts ({evaluated.origin}) is a training "
            f"prompt ({training.origin}); leave evaluation.held_out out"
        )


def _named(texts: Sequence[str]) -> str:
    return ", ".join(map(repr, texts[:SHOWN])) + (", ..." if len(texts) > SHOWN else "")


def said(run: Run, training: PromptSource, evaluated: PromptSource) -> list[str]:
    """Describe the prompts of a run, in lines for the user, before it starts."""
    whole = len(training.texts)
    distinct = len(set(map(normalised, training.texts)))
    repeated = f", {distinct} of them distinct: a repeated one is drawn as often as it stands there"
    lines = [f"training prompts: {whole} of {training.origin}" + (repeated if distinct < whole else "")]
    sizes = sorted({*training.places, *evaluated.places})
    if sizes:
        listed = ", ".join(f"{height} x {width}" for height, width in sizes[:SHOWN])
        more = ", ..." if len(sizes) > SHOWN else ""
        lines.append(f"sizes of the prompts' own (height x width): {listed}{more}")
    count = len(set(map(normalised, evaluated.texts)))
    used = min(run.evaluation.count, count)
    lines.append(f"evaluations: {used} of {count} {run.of_evaluation('prompts')} of {evaluated.origin}")
    if used < run.evaluation.count:
        few = "1 prompt" if used == 1 else f"{used} prompts"
        lines.append(f"evaluations have {few}, for evaluation.count={run.evaluation.count}: there are no more")
    return lines
