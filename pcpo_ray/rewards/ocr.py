"""Text that a prompt quotes, looked for in the image by RapidOCR (PP-OCR; its wheel carries the weights).

    score = mean over the quoted texts t of   1 if the text read contains t, else 1 - min(distance(t, read), |t|) / |t|

with Levenshtein's edit distance. Both are compared without case, spaces and width (NFKC). Quotes are "...", “...”,
„...“, «...», 「...」 and 『...』, the outer ones where they are nested. A prompt in which they do not pair is refused.
The recogniser knows Latin, Greek, Chinese and Japanese letters, and no others.
"""

import importlib.util
import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import UInt8

from pcpo_ray.errors import RewardError
from pcpo_ray.rewards.images import rgb

QUOTED = re.compile(
    r"""(?<!\d)["\uff02]([^"\uff02]*)["\uff02]"""
    "|“([^“”]*)”|„([^„“”]*)[“”]|«([^«»]*)»|「([^「」]*)」|『([^『』]*)』",
)
"""Quoted texts. A straight quote after a digit begins none: it means inches."""

MARKS = re.compile(r"[\"\uff02“”„«»「」『』]")

SHOWN = 3
"""Prompts that one message names."""


class Ocr:
    """The reward. Images are read one after the other: a text must not depend on the images beside it."""

    def __init__(self) -> None:
        self.reader = reader()
        self.read(np.full((64, 64, 3), 255, np.uint8))  # the detector is loaded at its first use

    @staticmethod
    def check_prompts(prompts: Sequence[str], origin: str) -> None:
        """Check that every prompt quotes a text that can be read. Raises RewardError that names some that do not."""
        check_quotes("ocr", prompts, origin)
        if importlib.util.find_spec("rapidocr") is None:  # `rewards.check` says so
            return
        unknown = {prompt: found for prompt in dict.fromkeys(prompts) if (found := _unknown(prompt))}
        if unknown:
            named = ", ".join(f"{prompt!r} ({found})" for prompt, found in list(unknown.items())[:SHOWN])
            raise RewardError(
                f"the reward ocr cannot read letters that {len(unknown)} prompts ({origin}) quote, and would score "
                f"every image as wrong: {named}; expected Latin, Greek, Chinese or Japanese ones: leave these prompts "
                "out, or ask a `judge` or a reward of your own"
            )

    def score(self, images: UInt8[np.ndarray, "N H W 3"], prompts: Sequence[str]) -> list[float]:
        texts = self.describe(images, prompts)
        return [accuracy(quoted(prompt), text) for prompt, text in zip(prompts, texts, strict=True)]

    def describe(self, images: UInt8[np.ndarray, "N H W 3"], prompts: Sequence[str]) -> list[str]:
        return [self.read(np.asarray(image)) for image in rgb(images)]

    def read(self, image: UInt8[np.ndarray, "H W 3"]) -> str:
        """Read an image's text, line by line."""
        found = self.reader(np.ascontiguousarray(image[..., ::-1]))  # as OpenCV has colours
        return "\n".join(found.txts or ())


def reader() -> Any:
    """Make RapidOCR's reader, whose networks are loaded at their first use."""
    import torch
    from rapidocr import RapidOCR

    return RapidOCR(
        params={
            "Global.log_level": "error",
            "Global.use_cls": False,  # upside-down text is no text
            "EngineConfig.onnxruntime.intra_op_num_threads": torch.get_num_threads(),
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
    )


def check_quotes(name: str, prompts: Sequence[str], origin: str) -> None:
    """Check that every prompt quotes a text, for a reward's `name`. Raises RewardError that names some that do not."""
    distinct = list(dict.fromkeys(prompts))
    unpaired = [prompt for prompt in distinct if MARKS.search(QUOTED.sub("", prompt))]
    without = [prompt for prompt in distinct if not quoted(prompt)]
    for wrong, what in ((without, "quote none"), (unpaired, "have quotes that do not pair, or mean inches")):
        if wrong:
            named = ", ".join(map(repr, wrong[:SHOWN])) + (", ..." if len(wrong) > SHOWN else "")
            raise RewardError(
                f"the reward {name} reads the text that a prompt quotes, and {len(wrong)} of {len(distinct)} prompts "
                f"({origin}) {what}: {named}; expected prompts such as 'a sign that says \"OPEN\"'"
            )


@cache
def readable() -> frozenset[str]:
    """List the folded characters that the recogniser knows."""
    made = reader()
    made(np.full((48, 160, 3), 255, np.uint8), use_det=False)  # the recogniser is loaded at its first use
    return frozenset("".join(map(folded, made.text_rec.postprocess_op.character)))


def _unknown(prompt: str) -> str:
    """Return the letters, digits and symbols in a prompt's quotes that the recogniser does not know."""
    asked = dict.fromkeys(folded("".join(quoted(prompt))))
    return "".join(one for one in asked if unicodedata.category(one)[0] in "LNS" and one not in readable())


def quoted(prompt: str) -> list[str]:
    """Find the texts that a prompt quotes, those without letters left out."""
    return [text for pair in QUOTED.findall(prompt) if folded(text := "".join(pair))]


def folded(text: str) -> str:
    """Fold case and width, and leave out spaces."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def accuracy(asked: Sequence[str], read: str) -> float:
    """Compute how much of the texts asked for was read, 0..1; NaN if none was asked for."""
    from rapidfuzz.distance import Levenshtein

    shown, parts = folded(read), []
    for text in map(folded, asked):
        distance = 0 if text in shown else Levenshtein.distance(text, shown)
        parts.append(1 - min(distance, len(text)) / len(text))
    return float(np.mean(parts)) if parts else float("nan")
