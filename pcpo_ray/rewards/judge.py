"""A vision-language model as judge, behind an OpenAI-compatible address (vLLM, SGLang, hosted ones).

    POST URL/chat/completions   the question with one image (yes_no, score) or two (pairwise) as data URLs

yes_no:   P(yes) / (P(yes) + P(no)) of the answer's first token
score:    the number that the template's pattern finds, scaled to 0..1
pairwise: the fraction of its comparisons within the group that an image won (Pref-GRPO, arXiv 2508.20751)

An answer that cannot be read is a missing score, never 0. Answers are drawn at temperature 0.
"""

import base64
import json
import logging
import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeVar

import numpy as np
from jaxtyping import UInt8

from pcpo_ray import config
from pcpo_ray.errors import RewardError
from pcpo_ray.rewards import judge_template
from pcpo_ray.rewards.http_client import AwayError, Client, RefusedError
from pcpo_ray.rewards.images import png, rgb

T = TypeVar("T")
R = TypeVar("R")

LIKELIEST = 20
"""Tokens whose probabilities are asked for; the most that OpenAI's interface gives."""

LONGEST = 512
"""Tokens of the longest answer, where the template does not say."""

NO_LIST = (404, 405, 501)
"""Status codes of a server that does not list its models: gateways answer questions alone."""

SHOWN = 200
"""Characters of an answer that a message shows."""

Answer = dict[str, Any]


class Chat(Client):
    """A judge's server and its template; `tokens` counts what the questions and the answers took, until `taken`."""

    def __init__(
        self,
        *,
        mode: Literal["yes_no", "score", "pairwise"],
        url: str,
        model: str,
        template: str | None,
        key: str | None,
        timeout: float,
        patience: float,
        concurrency: int,
    ) -> None:
        super().__init__(url, timeout=timeout, patience=patience, token=key)
        self.model, self.concurrency = model, concurrency
        self.template = judge_template.read(mode, template)
        self.tokens = {"prompt": 0, "completion": 0}
        self.counting = threading.Lock()
        try:
            listed = json.loads(self.once("GET", "/models", b"", "application/json"))
            served = [one["id"] for one in listed["data"]]
        except AwayError as error:  # it may be starting; the first scores will wait for it
            logging.getLogger(__name__).warning("%s is away (%s); its first scores wait for it", self.url, error)
            return
        except RefusedError as error:
            if error.status not in NO_LIST:
                raise
            logging.getLogger(__name__).warning("%s; whether it serves %s shows at the first question", error, model)
            return
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise RewardError(f"{self.url}/models is no list of models ({type(error).__name__}: {error})") from None
        if model not in served:
            raise RewardError(f"{self.url} serves {', '.join(served)} and not {model!r}; give one of those as `model`")

    @staticmethod
    def check(reward: config.Judge) -> None:
        """Check the template. Raises RewardError."""
        judge_template.read(reward.mode, reward.template)

    def all(self, ask: Callable[[T], R], questions: Sequence[T]) -> list[R]:
        """Ask all questions, `concurrency` at a time. Raises the RewardError of the first that failed."""
        with ThreadPoolExecutor(min(self.concurrency, len(questions))) as threads:
            return list(threads.map(ask, questions))

    def ask(self, prompt: str, images: Sequence[str], **more: Any) -> Answer | None:
        """Ask about images, given as data URLs; returns the first choice, None for an answer that is none."""
        system = [] if self.template.system is None else [{"role": "system", "content": self.template.system}]
        shown = [{"type": "image_url", "image_url": {"url": image}} for image in images]
        content = [*shown, {"type": "text", "text": self.template.asked(prompt)}]
        body = {
            "model": self.model,
            "messages": [*system, {"role": "user", "content": content}],
            "temperature": 0,
            "stream": False,
            "max_tokens": 1 if self.template.mode == "yes_no" else self.template.max_tokens or LONGEST,
            **more,
        }
        answer = self.request("POST", "/chat/completions", json.dumps(body).encode(), "application/json")
        try:
            found = json.loads(answer)
            choice: Answer = found["choices"][0]
            self._count(found.get("usage"))
            said = choice["message"]["content"] = text_of(choice["message"]["content"])
            cut_off = choice.get("finish_reason") == "length" and self.template.mode != "yes_no"
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            self.unread(answer[:SHOWN].decode(errors="replace"))
            return None
        if cut_off:
            self.unread(f"...{said[-SHOWN:]} (cut off at max_tokens)")
            return None
        return choice

    def _count(self, used: Any) -> None:
        """Count an answer's tokens; a server that counts none, or in another way, has answered all the same."""
        with self.counting:
            for name in self.tokens:
                count = used.get(f"{name}_tokens") if isinstance(used, dict) else None
                self.tokens[name] += count if isinstance(count, int) else 0

    def taken(self) -> dict[str, int]:
        """Return the tokens used since the last call."""
        with self.counting:
            found, self.tokens = self.tokens, dict.fromkeys(self.tokens, 0)
        return found

    def unread(self, answer: str) -> None:
        """Log an answer that cannot be read."""
        logging.getLogger(__name__).warning(
            "%s: no score can be read in the answer of %s: %r", self.url, self.model, answer[:SHOWN]
        )


class Judge(Chat):
    """The judge of single images (yes_no, score)."""

    def score(self, images: UInt8[np.ndarray, "N H W 3"], prompts: Sequence[str]) -> list[float]:
        one = self._probability if self.template.mode == "yes_no" else self._number
        return self.all(one, list(zip(data_urls(images), prompts, strict=True)))

    def _number(self, question: tuple[str, str]) -> float:
        image, prompt = question
        choice = self.ask(prompt, [image])
        if choice is None:
            return math.nan
        found = self.template.number(choice["message"]["content"])
        if found is None:
            self.unread(choice["message"]["content"])
        return math.nan if found is None else found

    def _probability(self, question: tuple[str, str]) -> float:
        image, prompt = question
        choice = self.ask(prompt, [image], logprobs=True, top_logprobs=LIKELIEST)
        if choice is None:
            return math.nan
        try:
            likeliest = choice["logprobs"]["content"][0]["top_logprobs"]
            words = [(one["token"].strip().casefold(), math.exp(one["logprob"])) for one in likeliest]
        except (TypeError, KeyError, IndexError, AttributeError, OverflowError):
            words = []
        yes, no = (sum(chance for word, chance in words if word == asked) for asked in ("yes", "no"))
        if not yes + no > 0:
            self.unread(f"{choice['message']['content']} (log-probabilities of {[word for word, _ in words]})")
            return math.nan
        return yes / (yes + no)


class PairwiseJudge(Chat):
    """The judge of a group's images against each other: of every pair, or in `rounds` of N random pairs.

    In a round the images stand in a random ring and each is compared with another one of it, once as the first image
    and once as the second. The comparisons of every pair alternate.
    """

    def __init__(self, *, rounds: int | None, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.rounds = rounds

    def score_group(self, images: UInt8[np.ndarray, "N H W 3"], prompt: str) -> list[float]:
        urls, pairs = data_urls(images), compared(len(images), self.rounds)
        wins, met = np.zeros(len(images)), np.zeros(len(images))
        for pair, better in zip(pairs, self.all(lambda pair: self._better(prompt, urls, pair), pairs), strict=True):
            if better is not None:
                met[list(pair)] += 1
                wins[pair[better]] += 1
        return [won / of if of else math.nan for won, of in zip(wins.tolist(), met.tolist(), strict=True)]

    def _better(self, prompt: str, urls: Sequence[str], pair: tuple[int, int]) -> int | None:
        choice = self.ask(prompt, [urls[place] for place in pair])
        if choice is None:
            return None
        found = self.template.better(choice["message"]["content"])
        if found is None:
            self.unread(choice["message"]["content"])
        return found


def compared(count: int, rounds: int | None) -> list[tuple[int, int]]:
    """List the pairs of images to compare, the first shown one first: every pair, or so many rounds of random ones.

    The random numbers are numpy's, which the scorer seeds by run and group.
    """
    if rounds is None or 2 * rounds >= count - 1:
        return [(i, j) if (i + j) % 2 else (j, i) for i in range(count) for j in range(i + 1, count)]
    ring = np.random.permutation(count).tolist()
    return [(ring[k], ring[(k + step) % count]) for step in range(1, rounds + 1) for k in range(count)]


def text_of(content: Any) -> str:
    """Return a message's text, which is given whole, in parts or not at all. Raises TypeError for anything else."""
    if isinstance(content, list):
        return "".join(text_of(part["text"]) for part in content)
    if not isinstance(content, str | None):
        raise TypeError(f"a message of type {type(content).__name__}")
    return content or ""


def data_urls(images: UInt8[np.ndarray, "N H W 3"]) -> list[str]:
    """Write images as data URLs."""
    return [f"data:image/png;base64,{base64.b64encode(png(image)).decode()}" for image in rgb(images)]
