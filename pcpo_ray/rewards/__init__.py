"""The Reward protocol, and `load`, which makes one from a config.

A reward scores images against their prompts; higher is better. A score that cannot be given is NaN ("missing"), never
0. In training all images of one call belong to one prompt; evaluations pass images of several prompts.
"""

import inspect
import pkgutil
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8

from pcpo_ray import config
from pcpo_ray.errors import RewardError
from pcpo_ray.process.own import unfound
from pcpo_ray.process.plugins import explained, isolated, resolve_class


@runtime_checkable
class Reward(Protocol):
    """Anything with this method."""

    def score(self, images: UInt8[np.ndarray, "N H W 3"], prompts: Sequence[str]) -> Sequence[float]:
        """Return N scores for N images (RGB, 0..255) and their N prompts."""


def check(reward: config.Reward) -> None:
    """Check, without loading a model, that the reward can be made. Raises RewardError."""
    if isinstance(reward, config.CustomReward):
        _class_of(reward)
        return
    scorer = scorer_of(reward)
    if hasattr(scorer, "check"):
        scorer.check(reward)


def scorer_of(reward: config.ShippedReward) -> Any:
    """Find the class that scores a shipped reward. Its optional `check` takes the reward and looks at its files."""
    return pkgutil.resolve_name(reward.scorer)


def load(reward: config.Reward, device: torch.device) -> Reward:
    """Make the reward that a config names, ready to score. Raises RewardError.

    Its effects on the process while it is built stay with it (process/plugins.py).
    """
    if not isinstance(reward, config.CustomReward):
        on_device = {} if reward.network == "none" else {"device": device}
        with isolated(reward.kind):
            scorer: Reward = scorer_of(reward)(**reward.arguments, **on_device)
            return scorer
    found = _class_of(reward)
    try:
        with isolated(reward.kind):
            made = found(**reward.options)
    except Exception as error:  # a class of the user's own may raise anything while it is built
        raise RewardError(
            f"reward {reward.kind!r} cannot be built with options {dict(reward.options)}: {explained(error)}"
        ) from error
    if not isinstance(made, Reward):
        raise RewardError(f"{reward.kind} made a {type(made).__name__} without a score method")
    return made


def _class_of(reward: config.CustomReward) -> Any:
    """Find the user's class and see that it is a reward. Raises RewardError."""
    try:
        found = resolve_class(reward.kind)
    except Exception as error:  # the user's module may raise anything while it is imported
        raise RewardError(
            f"reward {reward.kind!r}: {unfound(error, reward.kind)}; expected an importable package.module:Class"
        ) from error
    method = getattr(found, "score", None)
    expected = "expected a class with a method score(self, images, prompts) that returns one number an image"
    if not inspect.isclass(found) or not callable(method):
        raise RewardError(f"reward {reward.kind!r} is {found!r}, which is no reward: {expected}")
    try:
        inspect.signature(method).bind("self", "images", "prompts")
        inspect.signature(found).bind(**reward.options)
    except TypeError as error:
        raise RewardError(f"reward {reward.kind!r} with its options: {error}; {expected}") from None
    return found
