"""A scorer behind HTTP, such as `pcpo_ray/rewards/serve.py` in an environment of its own.

GET  URL/health   200 when it can score
POST URL/score    json: {"prompts": [...], "images": [PNG in base64, ...]}
                  npz:  arrays `images` (uint8) and `prompts` (str)
     answer       {"scores": [number or null, ...]}, one a picture; null is a missing score
"""

import base64
import io
import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import UInt8

from pcpo_ray.errors import RewardError
from pcpo_ray.rewards.pictures import rgb

if TYPE_CHECKING:
    import requests

LARGEST_ANSWER = 1 << 24
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0  # seconds before a retry, doubled from one to the next
BUSY = 429


class Remote:
    """Tries again after broken connections, timeouts and errors of the server's (5xx, 429), `retries` times.

    `timeout` is how many seconds an answer may take. Raises RewardError, naming the address, for everything else and
    when the retries are used up; an answer of another length, or with something that is no number, is never used.
    """

    def __init__(self, url: str, *, timeout: float, retries: int, format: Literal["json", "npz"]) -> None:
        self.url = url.rstrip("/")
        self.timeout, self.retries, self.format = timeout, retries, format
        self._request("GET", "/health", b"", "application/json")

    def score(self, images: UInt8[np.ndarray, "N H W 3"], prompts: Sequence[str]) -> list[float]:
        body, kind = (as_json if self.format == "json" else as_npz)(images, prompts)
        answer = self._request("POST", "/score", body, kind)
        try:
            scores = json.loads(answer)["scores"]
            values = [float("nan") if score is None else float(score) for score in scores]
        except (ValueError, TypeError, KeyError) as error:
            raise RewardError(f"{self.url}/score answered {answer[:200]!r}: {type(error).__name__}: {error}") from None
        if len(values) != len(images):
            raise RewardError(f"{self.url}/score gave {len(values)} scores for {len(images)} pictures")
        return values

    def _request(self, method: str, path: str, body: bytes, kind: str) -> bytes:
        import requests
        import urllib3

        url, problem, pause = self.url + path, "", FIRST_PAUSE
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            try:
                with requests.request(
                    method, url, data=body, headers={"Content-Type": kind}, timeout=self.timeout, stream=True
                ) as response:
                    answer = self._read(response)
            except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
                problem = f"{type(error).__name__}: {error}"
                continue
            if response.ok:
                return answer
            problem = f"status {response.status_code}: {answer[:200]!r}"
            if response.status_code < 500 and response.status_code != BUSY:
                raise RewardError(f"{url} refused: {problem}")
        raise RewardError(f"{url} failed {self.retries + 1} times, the last time with {problem}; is the scorer up?")

    def _read(self, response: "requests.Response") -> bytes:
        """The answer, whole within the deadline: a server that drips bytes would never time out otherwise."""
        import requests

        deadline, answer = time.monotonic() + self.timeout, bytearray()
        while chunk := response.raw.read1(1 << 16):
            answer += chunk
            if time.monotonic() > deadline:
                raise requests.Timeout(f"the answer was not whole after {self.timeout:g} s")
            if len(answer) > LARGEST_ANSWER:
                raise RewardError(f"{response.url} answered more than {LARGEST_ANSWER} bytes")
        return bytes(answer)


def as_json(images: UInt8[np.ndarray, "N H W 3"], prompts: Sequence[str]) -> tuple[bytes, str]:
    """The request's body and its type."""
    encoded = []
    for picture in rgb(images):
        file = io.BytesIO()
        picture.save(file, format="PNG")
        encoded.append(base64.b64encode(file.getvalue()).decode())
    return json.dumps({"prompts": list(prompts), "images": encoded}).encode(), "application/json"


def as_npz(images: UInt8[np.ndarray, "N H W 3"], prompts: Sequence[str]) -> tuple[bytes, str]:
    """The request's body and its type."""
    file = io.BytesIO()
    np.savez(file, images=np.stack([np.asarray(picture) for picture in rgb(images)]), prompts=np.array(list(prompts)))
    return file.getvalue(), "application/x-npz"
