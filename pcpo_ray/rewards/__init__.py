"""The Reward protocol, and `load`, which makes one from a config.

A reward scores images against their prompts; higher is better. A score that cannot be given is NaN ("missing"), never
0. The images of a call belong to one prompt in training; an evaluation may pass several prompts.
"""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8

from pcpo_ray import config
from pcpo_ray.errors import RewardError
from pcpo_ray.process.plugins import explained, isolated, resolve_class
from pcpo_ray.rewards import clip, published

HPS_FILES = {"hps_v2.1": "HPS_v2.1_compressed.pt", "hps_v2.0": "HPS_v2_compressed.pt"}
"""The authors' file of each: their shapes are the same."""


@runtime_checkable
class Reward(Protocol):
    """Anything with this method."""

    def score(self, images: UInt8[np.ndarray, "N H W 3"], prompts: Sequence[str]) -> Sequence[float]:
        """Return N scores for N images (RGB, 0..255) and their N prompts."""


def check(reward: config.Reward) -> None:
    """See, without loading a model, that the reward can be made. Raises RewardError."""
    match reward:
        case config.CustomReward():
            _class_of(reward)
        case config.ClipScore() | config.Diversity() | config.Aesthetic():
            clip.check(reward.model, reward.weights)
            if isinstance(reward, config.Aesthetic):
                from pcpo_ray.rewards import aesthetic

                clip.check_file(reward.head, "aesthetic head (sac+logos+ava1-l14-linearMSE.pth)")
                aesthetic.check(reward.model, reward.weights, reward.head)
        case config.PickScore():
            clip.check(reward.model, None)
            if other := published.other_than("PickScore_v1", Path(reward.model).absolute()):
                raise RewardError(f"{reward.model} is {other}, not PickScore_v1; give the folder of that")
            if reward.processor is not None and not Path(reward.processor).is_dir():
                raise RewardError(
                    f"no processor at {reward.processor}; expected the folder of laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
                )
        case config.Hps():
            clip.check_file(reward.weights, "HPS weights (HPS_v2.1_compressed.pt or HPS_v2_compressed.pt)")
            clip.check_architecture(reward.architecture)
            for kind, file in HPS_FILES.items():
                if Path(reward.weights).name == file and kind != reward.kind:
                    raise RewardError(f"{reward.weights} is the file of {kind}, not {reward.kind}; write kind: {kind}")
            if reward.architecture.endswith(published.TWIN):
                raise RewardError(
                    f"{reward.kind} was trained with GELU, and {reward.architecture} has QuickGELU; write "
                    f"architecture: {reward.architecture.removesuffix(published.TWIN)}"
                )


def load(reward: config.Reward, device: torch.device) -> Reward:
    """The reward that a config names, ready to score. Raises RewardError.

    What it does to the process while it is built, nobody else sees (process/plugins.py).
    """
    if not isinstance(reward, config.CustomReward):
        with isolated(reward.kind):
            return _shipped(reward, device)
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


def _shipped(reward: config.Reward, device: torch.device) -> Reward:
    match reward:
        case config.Jpeg(kind=kind, quality=quality):
            from pcpo_ray.rewards.jpeg import Jpeg

            return Jpeg(sign=-1 if kind == "jpeg_compressibility" else 1, quality=quality)
        case config.ClipScore(model=model, weights=weights):
            from pcpo_ray.rewards.clip_score import ClipScore

            return ClipScore(model, weights, device)
        case config.Diversity(model=model, weights=weights):
            from pcpo_ray.rewards.diversity import Diversity

            return Diversity(model, weights, device)
        case config.ShapesOracle(kind=kind):
            from pcpo_ray.rewards.shapes_oracle import ShapesOracle

            return ShapesOracle(kind)
        case config.Grain():
            from pcpo_ray.rewards.grain import Grain

            return Grain()
        case config.Aesthetic(model=model, weights=weights, head=head):
            from pcpo_ray.rewards.aesthetic import Aesthetic

            return Aesthetic(model, weights, head, device)
        case config.PickScore(model=model, processor=processor):
            from pcpo_ray.rewards.pickscore import PickScore

            return PickScore(model, processor, device)
        case config.Hps(weights=file, architecture=architecture):
            from pcpo_ray.rewards.hps import Hps

            return Hps(file, architecture, device)
        case config.Remote(url=url, timeout=timeout, patience=patience, format=format, token=token):
            from pcpo_ray.rewards.remote import Remote

            return Remote(url, timeout=timeout, patience=patience, format=format, token=token)
    raise AssertionError(reward)


def _class_of(reward: config.CustomReward) -> Any:
    """The user's class."""
    try:
        found = resolve_class(reward.kind)
    except Exception as error:  # the user's module may raise anything while it is imported
        raise RewardError(
            f"reward {reward.kind!r}: {explained(error)}; expected an importable package.module:Class"
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
