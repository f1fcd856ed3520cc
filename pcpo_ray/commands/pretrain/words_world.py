"""The words world, as pretraining sees it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from string import ascii_lowercase

import numpy as np

from pcpo_ray.commands.pretrain.world import Bar, World
from pcpo_ray.rewards.ocr_word import WordOcr
from pcpo_ray.words import CHECKPOINTS
from pcpo_ray.words.captions import COLOURS, LONGEST, PAIRS, Caption, Split, spelled, words_of
from pcpo_ray.words.draw import HEIGHT, WIDTH, draw
from pcpo_ray.words.oracle import colours, letters

NAMED = 0.7
"""The fraction of captions that name the ink; and, drawn apart, of those that name the paper."""
STRINGS = 0.5
"""The fraction of training captions with letters drawn one by one, of which a model can guess none from the others."""


def sample_captions(rng: np.random.Generator, count: int, split: Split) -> list[str]:
    """Draw captions of a split, with repetition. Those of "train" have words of the list and other letters."""
    words, texts = words_of(split), []
    for _ in range(count):
        ink, paper = PAIRS[rng.integers(len(PAIRS))]
        inked, plain = rng.random(2) < NAMED
        loose = split == "train" and rng.random() < STRINGS
        word = _string(rng) if loose else words[rng.integers(len(words))]
        texts.append(Caption(word=word, ink=ink if inked else None, paper=paper if plain else None).text)
    return texts


def _string(rng: np.random.Generator) -> str:
    """Draw 3 to 5 letters that are no held-out word."""
    while True:
        word = "".join(ascii_lowercase[place] for place in rng.integers(26, size=rng.integers(3, LONGEST + 1)))
        if word not in words_of("held_out"):
            return word


def content(text: str) -> Caption:
    """Read a caption of `sample_captions`."""
    caption = spelled(text)
    assert caption is not None
    return caption


def told(text: str) -> list[int]:
    """Return what a caption says, one class per question: the letter in each place, the ink, the paper.

    The class after the last means that there is no such letter, or that the caption does not say.
    """
    caption = content(text)
    places = [ascii_lowercase.index(letter) for letter in caption.word]
    said = [len(COLOURS) if colour is None else COLOURS.index(colour) for colour in (caption.ink, caption.paper)]
    return places + [len(ascii_lowercase)] * (LONGEST - len(places)) + said


@cache
def _reader() -> WordOcr:
    return WordOcr("exact")


def judged(images: Sequence[np.ndarray], texts: Sequence[str]) -> dict[str, float]:
    """Fraction of images whose word OCR reads exactly (`all`), and what the oracle sees of letters and colours."""
    pairs = list(zip(images, texts, strict=True))
    read = _reader().score(np.stack(images), texts)
    return {
        "all": float(np.mean(read)),
        "letters": float(np.mean([letters(image, text) for image, text in pairs])),
        "colours": float(np.mean([colours(image, text) for image, text in pairs])),
    }


BAR = partial(Bar, early=0.2, kept=0.45, count=96, every=50)

WORLD = World(
    name="words",
    checkpoints=CHECKPOINTS,
    height=HEIGHT,
    width=WIDTH,
    vocabulary=("the", "word", "in", "on", *COLOURS),
    letters=LONGEST,
    sample=sample_captions,
    draw=lambda text, seed: draw(content(text), seed),
    told=told,
    classes=(len(ascii_lowercase) + 1,) * LONGEST + (len(COLOURS) + 1,) * 2,
    judged=judged,
    vae_channels=(16, 32, 48),
    latent_channels=12,
    unet_channels=(48, 96),
    steps={"vae": 6000, "sd": 3000, "flux": 3000},
    # As the recipes sample. With all steps OCR reads nine words in ten of words-sd, and alignment has nothing to teach;
    # words-flux reads 72%.
    bars={
        "sd": BAR(good=0.85, sampling={"num_inference_steps": 8, "guidance_scale": 1.0}),
        "flux": BAR(good=0.6, sampling={"num_inference_steps": 8, "true_cfg_scale": 1.0}),
    },
    reading_steps=300,
)
