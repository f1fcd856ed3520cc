"""One word that fills the image, read by RapidOCR's recogniser alone: no text has to be found first.

edits: as ocr.py, of the text that the recogniser reads
exact: 1 if it reads that text and no other, else 0
ctc:   log p(word | image), the recogniser's own: the sum over all its alignments (Graves et al., 2006, eq. 3)

Without case, spaces and width, as in ocr.py: a letter's probability is that of all characters that fold to it, and
spaces count as blanks. Images are stretched to the recogniser's height and at least `WIDTH` pixels, a column for 8.
"""

import unicodedata
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8

from pcpo_ray.errors import RewardError
from pcpo_ray.rewards import ocr
from pcpo_ray.rewards.images import rgb

WIDTH, COLUMN = 160, 8
"""The least width in pixels that images are stretched to, and the width of a column of the recogniser's output."""

BATCH = 8
"""Images that go through the network together: always so many, as its last bits depend on it. More are no faster."""

LEAST = float(np.finfo(np.float32).tiny)
"""The least probability of a character, so that every log-probability is finite."""


class WordOcr:
    """The reward, by the edits, by whether the word is read exactly, or by its log-probability."""

    def __init__(self, score: Literal["edits", "exact", "ctc"]) -> None:
        self.reader = ocr.reader()
        self.reader(np.full((48, WIDTH, 3), 255, np.uint8), use_det=False)  # the recogniser is loaded at its first use
        self.recogniser = self.reader.text_rec
        self.kind = score
        self.blanks, self.letters = alphabet(self.recogniser.postprocess_op.character)

    @staticmethod
    def check_prompts(prompts: Sequence[str], origin: str) -> None:
        """Check that every prompt quotes one word that fits and can be read. Raises RewardError that names some."""
        ocr.Ocr.check_prompts(prompts, origin)
        check_words("ocr with detect: false", prompts, origin, "set detect: true, or ")

    def score(self, images: UInt8[np.ndarray, "N H W 3"], prompts: Sequence[str]) -> list[float]:
        predicted = self._predicted(images)
        if self.kind == "ctc":
            return self._ctc(predicted, prompts)
        read = self._texts(predicted)
        if self.kind == "exact":
            return exact(prompts, read)
        return [ocr.accuracy(ocr.quoted(prompt), text) for prompt, text in zip(prompts, read, strict=True)]

    def describe(self, images: UInt8[np.ndarray, "N H W 3"], prompts: Sequence[str]) -> list[str]:
        return self._texts(self._predicted(images))

    def _predicted(self, images: UInt8[np.ndarray, "N H W 3"]) -> Float[np.ndarray, "N T V"]:
        """Compute the recogniser's probabilities of each character in each column."""
        ready, found = self._ready(images), []
        for first in range(0, len(ready), BATCH):
            part = ready[first : first + BATCH]
            filled = np.concatenate([part, np.zeros((BATCH - len(part), *part.shape[1:]), part.dtype)])
            found.append(self.recogniser.session(filled)[: len(part)])
        return np.concatenate(found)

    def _ready(self, images: UInt8[np.ndarray, "N H W 3"]) -> Float[np.ndarray, "N 3 H W"]:
        """Stretch images and scale them to -1..1, as the recogniser does."""
        import cv2

        height = self.recogniser.rec_image_shape[1]
        drawn = [np.asarray(image)[..., ::-1] for image in rgb(images)]  # as OpenCV has colours
        width = max(WIDTH, round(height * drawn[0].shape[1] / drawn[0].shape[0] / COLUMN) * COLUMN)
        stretched = np.stack([cv2.resize(np.ascontiguousarray(image), (width, height)) for image in drawn])
        return stretched.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1

    def _texts(self, predicted: Float[np.ndarray, "N T V"]) -> list[str]:
        lines, _ = self.recogniser.postprocess_op(predicted)
        return [text if sure >= self.reader.text_score else "" for text, sure in lines]

    def _ctc(self, predicted: Float[np.ndarray, "N T V"], prompts: Sequence[str]) -> list[float]:
        scores = []
        for columns, prompt in zip(predicted, prompts, strict=True):
            (word,) = _words(prompt) or ("",)
            absent = [letter for letter in word if letter not in self.letters]
            if absent or not word:
                raise RewardError(
                    f"the recogniser knows no {absent} for {prompt!r}; expected one quoted word of letters"
                )
            own = list(dict.fromkeys(word))
            kept = np.stack([columns[:, where].sum(1) for where in (self.blanks, *(self.letters[one] for one in own))])
            scores.append(log_probability(kept.T, [1 + own.index(letter) for letter in word]))
        return scores


def check_words(name: str, prompts: Sequence[str], origin: str, otherwise: str = "") -> None:
    """Check that every prompt quotes one word that fits. Raises RewardError that names some, and `otherwise`."""
    ocr.check_quotes(name.partition(" ")[0], prompts, origin)
    most = WIDTH // COLUMN
    wrong = [prompt for prompt in dict.fromkeys(prompts) if len(found := _words(prompt)) > 1 or room(found[0]) > most]
    if wrong:
        raise RewardError(
            f"the reward {name} reads one text of up to {most} letters, and {len(wrong)} prompts ({origin}) quote "
            f"more: {', '.join(map(repr, wrong[: ocr.SHOWN]))}; {otherwise}quote less"
        )


def exact(prompts: Sequence[str], read: Sequence[str]) -> list[float]:
    """Return 1 for each text that is the one that its prompt quotes, and no other, else 0."""
    return [float(_words(prompt) == [ocr.folded(text)]) for prompt, text in zip(prompts, read, strict=True)]


def alphabet(characters: Sequence[str]) -> tuple[list[int], dict[str, list[int]]]:
    """Return the places of blank and spaces, which come to nothing when folded, and those of each folded letter."""
    blanks, letters = [0], dict[str, list[int]]()
    for place, character in enumerate(characters[1:], 1):
        if unicodedata.normalize("NFKC", character).isspace():
            blanks.append(place)
        else:
            letters.setdefault(ocr.folded(character), []).append(place)
    return blanks, letters


def log_probability(probabilities: Float[np.ndarray, "T V"], word: Sequence[int]) -> float:
    """Compute log p(word) by CTC from the probabilities of each column; place 0 is the blank."""
    import torch

    logs = torch.from_numpy(np.maximum(probabilities.astype(np.float64), LEAST)).log()[:, None]
    lost = torch.nn.functional.ctc_loss(
        logs, torch.tensor([list(word)]), torch.tensor([len(logs)]), torch.tensor([len(word)]), reduction="sum"
    )
    return -float(lost)


def room(word: str) -> int:
    """Count the columns that a word needs: one a letter, and one between equal neighbours."""
    return len(word) + sum(one == other for one, other in pairwise(word))


def _words(prompt: str) -> list[str]:
    return [ocr.folded(text) for text in ocr.quoted(prompt)]
