"""A scorer behind HTTP, such as `pcpo_ray/rewards/serve.py` in an environment of its own.

GET  URL/health   200 when it can score; "method" in the answer, if it is there, says which of the two it has
               (each with the header Authorization: Bearer TOKEN, if the server requires a token)
POST URL/score    json: {"prompts": [...], "images": [PNG in base64, ...]}
                  npz:  arrays `images` (uint8) and `prompts` (str)
     answer       {"scores": [number or null, ...]}, one per image; null is a missing score
POST URL/score_group   the same, of one whole group: its images are compared, and its prompts are all the same
"""

import base64
import io
import json
import logging
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import UInt8

from pcpo_ray.errors import RewardError
from pcpo_ray.rewards.http_client import AwayError, Client
from pcpo_ray.rewards.images import png, rgb


class Scorer(Client):
    """The client of such a scorer. Answers of the wrong length, or with anything but numbers, are never used."""

    method: ClassVar[Literal["score", "score_group"]]

    def __init__(
        self, url: str, *, timeout: float, patience: float, format: Literal["json", "npz"], token: str | None = None
    ) -> None:
        super().__init__(url, timeout=timeout, patience=patience, token=token)
        self.format = format
        try:
            answer = self.once("GET", "/health", b"", "application/json")
        except AwayError as error:  # it may be restarting; the first scores will wait for it
            logging.getLogger(__name__).warning("%s is away (%s); its first scores wait for it", self.url, error)
            return
        if (offered := _method(answer)) not in (None, self.method):
            raise RewardError(
                f"{self.url} serves a reward with {offered}, and {self.method} was expected; "
                f"set `group: {str(offered == 'score_group').lower()}` for it"
            )

    def asked(self, images: UInt8[np.ndarray, "N H W 3"], prompts: Sequence[str]) -> list[float]:
        """Ask for the images' scores."""
        body, kind = (as_json if self.format == "json" else as_npz)(images, prompts)
        where = f"{self.url}/{self.method}"
        answer = self.request("POST", f"/{self.method}", body, kind)
        try:
            values = [_number(score) for score in _list(json.loads(answer)["scores"])]
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise RewardError(f"{where} answered {answer[:200]!r}: {type(error).__name__}: {error}") from None
        if len(values) != len(images):
            raise RewardError(f"{where} gave {len(values)} scores for {len(images)} images")
        return values


class Remote(Scorer):
    """The client of a reward of single images."""

    method = "score"

    def score(self, images: UInt8[np.ndarray, "N H W 3"], prompts: Sequence[str]) -> list[float]:
        return self.asked(images, prompts)


class GroupRemote(Scorer):
    """The client of a reward that compares the images of a group."""

    method = "score_group"

    def score_group(self, images: UInt8[np.ndarray, "N H W 3"], prompt: str) -> list[float]:
        return self.asked(images, [prompt] * len(images))


def _list(scores: object) -> list[object]:
    """Return the scores as they are. Raises TypeError for anything but a list: a text would give one a letter."""
    if not isinstance(scores, list):
        raise TypeError(f"scores are a {type(scores).__name__}; expected a list of numbers")
    return scores


def _number(score: object) -> float:
    """Return a score, NaN for null. Raises TypeError for anything but a number."""
    if not isinstance(score, float | int | None):
        raise TypeError(f"a score is the {type(score).__name__} {score!r:.40}; expected a number, or null if missing")
    return float("nan") if score is None else float(score)


def _method(answer: bytes) -> str | None:
    """Read which method a server says that it has; None if it does not say."""
    try:
        found = json.loads(answer)
    except ValueError:
        return None
    named = found.get("method") if isinstance(found, dict) else None
    return named if isinstance(named, str) else None


def as_json(images: UInt8[np.ndarray, "N H W 3"], prompts: Sequence[str]) -> tuple[bytes, str]:
    """The request's body and its type."""
    encoded = [base64.b64encode(png(image)).decode() for image in rgb(images)]
    return json.dumps({"prompts": list(prompts), "images": encoded}).encode(), "application/json"


def as_npz(images: UInt8[np.ndarray, "N H W 3"], prompts: Sequence[str]) -> tuple[bytes, str]:
    """The request's body and its type."""
    file = io.BytesIO()
    np.savez(file, images=np.stack([np.asarray(image) for image in rgb(images)]), prompts=np.array(list(prompts)))
    return file.getvalue(), "application/x-npz"
