"""The scorer: a group's images in, each reward's scores out, and for evaluations their features and descriptions.

A failed score is missing, never 0. Whatever a reward does, the process state is restored (process/plugins.py), and its
inputs are its own copies. So even in one process it cannot disturb samplers, learner or other rewards.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from itertools import chain
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, UInt8

from pcpo_ray import config, rewards
from pcpo_ray.data.parked import parked_network
from pcpo_ray.data.seeds import seed_of
from pcpo_ray.data.types import QUALITY, Task
from pcpo_ray.errors import RewardError
from pcpo_ray.process import plugins
from pcpo_ray.rewards import probes, quality
from pcpo_ray.rewards.http_client import Client
from pcpo_ray.rewards.judge import Chat
from pcpo_ray.rewards.oracle import Oracle


class Scorer:
    """One process's rewards: those trained on and those that only evaluations watch.

    With `workers.park` the networks of each are on the device while it scores only.
    """

    def __init__(self, run: config.Run, device: torch.device) -> None:
        self.seed = run.seed
        self.named = {reward.name: reward for reward in (*run.evaluation.rewards, *run.rewards)}
        self.trained = [reward.name for reward in run.rewards]
        self.rewards = {name: rewards.load(reward, device) for name, reward in self.named.items()}
        for name, reward in self.named.items():
            probes.check(name, reward, self.rewards[name])
        wanted = run.evaluation.quality
        with plugins.isolated(QUALITY):
            self.measures = None if wanted is None else quality.Measures(wanted, device)
        self.networks = {name: rewards.networks(self.named[name], made) for name, made in self.rewards.items()}
        self.networks[QUALITY] = () if self.measures is None else self.measures.networks
        every = dict.fromkeys(chain.from_iterable(self.networks.values()))  # two rewards may share one
        self.parked = {network: parked_network(run.workers.park, network, device) for network in every}

    def ask(self, prompts: Sequence[str], patience: float = math.inf) -> None:
        """Ask the FOREIGN rewards about two drawn images and these prompts, before anything long has begun.

        A server that is away is waited for as long as its reward says, and for `patience` seconds at most. A score may
        be missing. Whatever they raise becomes a RewardError with the file and line of the user's code.
        """
        for name, reward in self.named.items():
            if not isinstance(reward, probes.FOREIGN):
                continue
            images = probes.of(reward).images[:2]
            try:
                with plugins.isolated(reward.kind, self.seed), _hurried(self.rewards[name], patience):
                    texts = [*prompts, *prompts][:2]
                    checked(rewards.scores(self.rewards[name], _copied(images), texts), len(images))
                    self._described(name, images, texts)
            except Exception as error:  # a reward may raise anything
                raise RewardError(
                    f"the reward {name} was asked about two drawn images before the run, and failed: "
                    f"{plugins.explained(error)}; fix it, or have it return nan for an image that it cannot score"
                ) from error

    def score(
        self, task: Task, images: UInt8[np.ndarray, "N H W 3"]
    ) -> tuple[dict[str, list[float]], dict[str, str], quality.Measured]:
        """Return each reward's scores (NaN if missing), the causes by reward, and the features for quality.

        Features are empty for training groups, and if they failed; the cause is then under `quality`. A reward's random
        numbers depend only on the run's seed and the group, so that any worker finds the same scores.
        """
        shared = images.view()
        shared.flags.writeable = False
        scores, failures = {}, {}
        for name in self.trained if task.purpose == "train" else self.named:
            own_images = _copied(images) if isinstance(self.named[name], config.CustomReward) else shared
            scores[name], cause = self._scored(name, own_images, task, first=0)
            if cause:
                failures[name] = cause
        measured: Mapping[str, np.ndarray] = {}
        if self.measures is not None and task.purpose == "evaluate":
            try:
                with plugins.isolated(QUALITY), self._awake(QUALITY):
                    measured = self.measures(shared, each=task.images)
            except Exception as error:  # a network may raise anything; the loop counts it as it does rewards
                failures[QUALITY] = plugins.explained(error)
        return scores, failures, measured

    def describe(self, task: Task, images: UInt8[np.ndarray, "N H W 3"]) -> dict[str, list[str]]:
        """Return what each reward that says so saw in an evaluation's images, trained ones first; or why it failed."""
        found = {}
        for name in dict.fromkeys([*self.trained, *self.rewards]) if task.purpose == "evaluate" else ():
            if not isinstance(self.rewards[name], rewards.Describing):
                continue
            seed = seed_of(self.seed, "describe", name, task.position)
            try:
                with plugins.isolated(self.named[name].kind, seed):
                    found[name] = self._described(name, images, task.texts)
            except Exception as error:  # a user's reward may raise anything, and its scores are here
                found[name] = [f"(failed: {plugins.explained(error)})"] * len(images)
        return found

    def _described(self, name: str, images: UInt8[np.ndarray, "N H W 3"], prompts: Sequence[str]) -> list[str]:
        """Ask a reward what it sees, if it says so. Raises ValueError for anything but a text an image."""
        reward = self.rewards[name]
        if not isinstance(reward, rewards.Describing):
            return []
        with self._awake(name):
            said = list(reward.describe(_copied(images), list(prompts)))
        if len(said) != len(images) or not all(isinstance(text, str) for text in said):
            raise ValueError(f"describe returned {said!r:.200} for {len(images)} images; expected a text for each")
        return said

    @contextlib.contextmanager
    def _awake(self, name: str) -> Iterator[None]:
        """Keep the networks of a reward, or of the quality, on the device while inside."""
        with contextlib.ExitStack() as sleeping:
            for network in self.networks[name]:
                sleeping.enter_context(self.parked[network].awake())
            yield

    def tokens(self) -> dict[str, dict[str, int]]:
        """Take the tokens that each judge has used since the last call, by name and kind; none for one unused."""
        judges = {name: made.taken() for name, made in self.rewards.items() if isinstance(made, Chat)}
        return {name: used for name, used in judges.items() if any(used.values())}

    def _scored(
        self, name: str, images: UInt8[np.ndarray, "N H W 3"], task: Task, *, first: int
    ) -> tuple[list[float], str]:
        """Score the task's images from the `first` on, and return the cause of missing scores.

        A reward that compares a group's images gets one prompt's at a time. If another one fails for several prompts
        together, each prompt is scored by itself.
        """
        single = len(images) <= task.images
        if not single and isinstance(self.rewards[name], rewards.GroupReward):
            return self._by_prompt(name, images, task)
        prompts = task.texts[first : first + len(images)]
        read = self._read(name, prompts)
        seed = seed_of(self.seed, "reward", name, task.purpose, task.step, task.position, first)
        try:
            with plugins.isolated(self.named[name].kind, seed), self._awake(name):
                scores = checked(rewards.scores(self.rewards[name], images, prompts), len(images))
        except Exception as error:  # a user's reward may raise anything; the loop counts it and stops when it lasts
            if not single:
                return self._by_prompt(name, images, task)
            return [float("nan")] * len(images), plugins.explained(error)
        known = np.isfinite(scores)
        found = [score if finite else float("nan") for score, finite in zip(scores, known, strict=True)]
        if (known | ~read).all():
            return found, ""
        wrong = np.array(scores)[~known]
        return found, f"{len(wrong)} of {len(known)} scores are not finite, such as {wrong[0]}"

    def _read(self, name: str, prompts: Sequence[str]) -> Bool[np.ndarray, " N"]:
        """Tell which prompts a reward reads: without a score of others nothing is missing."""
        reward = self.rewards[name]
        if not isinstance(reward, Oracle):
            return np.ones(len(prompts), bool)
        return np.array([reward.reads(prompt) for prompt in prompts])

    def _by_prompt(self, name: str, images: UInt8[np.ndarray, "N H W 3"], task: Task) -> tuple[list[float], str]:
        """Score all of the task's images, one prompt's at a time; returns the causes of missing scores as one text."""
        starts = range(0, len(images), task.images)
        parts = [self._scored(name, images[at : at + task.images], task, first=at) for at in starts]
        causes = dict.fromkeys(cause for _, cause in parts if cause)
        return [score for found, _ in parts for score in found], "; ".join(causes)


def _copied(images: UInt8[np.ndarray, "N H W 3"]) -> UInt8[np.ndarray, "N H W 3"]:
    """Copy the images, read-only like Ray's: torch writes into a read-only array without asking."""
    copied = images.copy()
    copied.flags.writeable = False
    return copied


def checked(values: Any, count: int) -> list[float]:
    """Convert a reward's scores, numbers of any type on any device, to floats; None is NaN.

    Raises ValueError and TypeError for anything but one number per image.
    """
    if (
        isinstance(values, Iterable)
        and not hasattr(values, "shape")
        and not isinstance(values, (str, bytes, bytearray, Mapping, Set))
    ):
        values = list(values)
    if _shape(values) != (count,):
        raise ValueError(
            f"got a {type(values).__name__} with scores of shape {_shape(values)} for {count} images; "
            f"expected ({count},), one number per image"
        )
    return [_number(value) for value in (values.tolist() if hasattr(values, "tolist") else values)]


def _hurried(reward: Any, patience: float) -> contextlib.AbstractContextManager[None]:
    return reward.hurried(patience) if isinstance(reward, Client) else contextlib.nullcontext()


def _shape(values: Any) -> tuple[int, ...]:
    if hasattr(values, "shape"):
        return tuple(values.shape)
    return (len(values), *(_shape(values[0]) if values else ())) if isinstance(values, (list, tuple)) else ()


def _number(value: Any) -> float:
    if value is None or value is np.ma.masked:
        return float("nan")
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, (str, bytes)):
        raise TypeError(f"got the text {value!r} as a score; expected a number")
    return float(value)
