"""The Reward protocol, and `load`, which makes one from a config.

A reward scores images against their prompts; higher is better. A score that cannot be given is NaN ("missing"), never
0. A reward of single images has `score`: in training all images of one call belong to one prompt, evaluations pass
images of several. A reward that compares a group's images has `score_group`, and always gets one whole group. Either
may also have `describe`, which says in words what it saw.
"""

import inspect
import pkgutil
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8

from pcpo_ray import config
from pcpo_ray.config import fetch
from pcpo_ray.errors import RewardError
from pcpo_ray.process.own import unfound
from pcpo_ray.process.plugins import explained, isolated, resolve_class


@runtime_checkable
class Reward(Protocol):
    """Anything with this method."""

    def score(self, images: UInt8[np.ndarray, "N H W 3"], prompts: Sequence[str]) -> Sequence[float]:
        """Return N scores for N images (RGB, 0..255) and their N prompts."""


@runtime_checkable
class GroupReward(Protocol):
    """Anything with this method."""

    def score_group(self, images: UInt8[np.ndarray, "N H W 3"], prompt: str) -> Sequence[float]:
        """Return N scores for the N images of a group, each against the others, and their prompt."""


@runtime_checkable
class Describing(Protocol):
    """A reward that also says what it saw: evaluations record it, and pages show it under the images."""

    def describe(self, images: UInt8[np.ndarray, "N H W 3"], prompts: Sequence[str]) -> Sequence[str]:
        """Return N short texts, such as the words read in N images; an empty one where there is nothing to say."""


METHODS: Mapping[str, tuple[str, ...]] = {"score": ("images", "prompts"), "score_group": ("images", "prompt")}
"""The methods of which a reward has one, and their arguments."""


def scores(
    reward: Reward | GroupReward, images: UInt8[np.ndarray, "N H W 3"], prompts: Sequence[str]
) -> Sequence[float]:
    """Score images, which are one whole group for a reward that compares them."""
    return reward.score(images, prompts) if isinstance(reward, Reward) else reward.score_group(images, prompts[0])


def check(reward: config.Reward) -> None:
    """Check, without loading a model, that the reward can be made. Raises RewardError."""
    if isinstance(reward, config.CustomReward):
        _class_of(reward)
        return
    fetch.check(reward)
    scorer = scorer_of(reward)
    if hasattr(scorer, "check"):
        scorer.check(reward)


def check_group(reward: config.Reward, images: int, key: str) -> None:
    """Refuse groups of one image, which `key` says, to a user's reward that compares a group's. Raises RewardError."""
    if isinstance(reward, config.CustomReward) and images < 2 and hasattr(_class_of(reward), "score_group"):
        raise RewardError(f"{key} is {images}, and {reward.name} compares a prompt's images; use at least 2")


def check_prompts(reward: config.Reward, prompts: Sequence[str], origin: str) -> None:
    """Check that a shipped reward can score images of these prompts. Raises RewardError."""
    if not isinstance(reward, config.CustomReward) and hasattr(scorer := scorer_of(reward), "check_prompts"):
        _check_once(scorer, tuple(prompts), origin)


@lru_cache(maxsize=4)  # the arms of a study have the same prompts, a world's some 100,000
def _check_once(scorer: Any, prompts: tuple[str, ...], origin: str) -> None:
    scorer.check_prompts(prompts, origin)


def scorer_of(reward: config.ShippedReward) -> Any:
    """Find the class that scores a shipped reward. Its optional `check` takes the reward and looks at its files."""
    return pkgutil.resolve_name(reward.scorer)


def load(reward: config.Reward, device: torch.device) -> Reward | GroupReward:
    """Make the reward that a config names, ready to score. Raises RewardError.

    Its effects on the process while it is built stay with it (process/plugins.py).
    """
    if not isinstance(reward, config.CustomReward):
        on_device = {"device": device} if reward.on_device else {}
        with isolated(reward.kind):
            scorer: Reward | GroupReward = scorer_of(reward)(**reward.arguments, **on_device)
            return scorer
    found = _class_of(reward)
    try:
        with isolated(reward.kind):
            made = found(**reward.options)
    except Exception as error:  # a class of the user's own may raise anything while it is built
        raise RewardError(
            f"reward {reward.kind!r} cannot be built with options {dict(reward.options)}: {explained(error)}"
        ) from error
    if not isinstance(made, Reward | GroupReward):
        raise RewardError(f"{reward.kind} made a {type(made).__name__} without a score method")
    return made


def networks(reward: config.Reward, made: Any) -> Sequence[torch.nn.Module]:
    """List the networks that torch runs for a shipped reward (`networks` of its scorer).

    What a reward of the user's own holds is not looked into.
    """
    found: Sequence[torch.nn.Module] = (
        made.networks if isinstance(reward, config.ShippedReward) and reward.on_device else ()
    )
    return found


def _class_of(reward: config.CustomReward) -> Any:
    """Find the user's class and see that it is a reward. Raises RewardError."""
    try:
        found = resolve_class(reward.kind)
    except Exception as error:  # the user's module may raise anything while it is imported
        raise RewardError(
            f"reward {reward.kind!r}: {unfound(error, reward.kind)}; expected an importable package.module:Class"
        ) from error
    expected = (
        "expected a class with a method score(self, images, prompts), or score_group(self, images, prompt) if it "
        "compares a group's images, that returns one number an image"
    )
    named = [name for name in METHODS if callable(getattr(found, name, None))]
    if not inspect.isclass(found) or not named:
        raise RewardError(f"reward {reward.kind!r} is {found!r}, which is no reward: {expected}")
    if len(named) > 1:
        raise RewardError(f"reward {reward.kind!r} has both score and score_group; keep one of them: {expected}")
    try:
        inspect.signature(getattr(found, named[0])).bind("self", *METHODS[named[0]])
        if callable(method := getattr(found, "describe", None)):
            inspect.signature(method).bind("self", *METHODS["score"])
        inspect.signature(found).bind(**reward.options)
    except TypeError as error:
        raise RewardError(f"reward {reward.kind!r} with its options: {error}; {expected}") from None
    return found
