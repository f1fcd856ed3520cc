"""The scorer: a group's images in, each reward's scores out, and for evaluations their features.

A reward that fails is missing, never 0.
"""

import traceback
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import UInt8

from pcpo_ray import config, quality, rewards
from pcpo_ray.trajectory import QUALITY, Task


class Scorer:
    """One process's rewards: those trained on, and those that evaluations watch besides."""

    def __init__(self, run: config.Run, device: torch.device) -> None:
        named = {reward.name: reward for reward in (*run.evaluation.rewards, *run.rewards)}
        self.trained = [reward.name for reward in run.rewards]
        self.rewards = {name: rewards.load(reward, device) for name, reward in named.items()}
        wanted = run.evaluation.quality
        self.measures = None if wanted is None else quality.Measures(wanted, device)

    def score(
        self, task: Task, images: UInt8[np.ndarray, "N H W 3"]
    ) -> tuple[dict[str, list[float]], dict[str, str], quality.Measured]:
        """Each reward's scores, NaN where missing; by reward the cause of what is missing; what quality is made of.

        The last is empty for a group to train on, and where it failed: then the cause is under `quality`.
        """
        names = self.trained if task.purpose == "train" else list(self.rewards)
        prompts = task.texts
        scores, failures = {}, {}
        for name in names:
            scores[name], cause = _scored(self.rewards[name], images, prompts, each=task.images)
            if cause:
                failures[name] = cause
        measured: Mapping[str, np.ndarray] = {}
        if self.measures is not None and task.purpose == "evaluate":
            try:
                measured = self.measures(images, each=task.images)
            except Exception as error:  # a network may raise anything; the loop counts it as it does rewards
                failures[QUALITY] = "".join(traceback.format_exception_only(error)).strip()
        return scores, failures, measured


def _scored(
    reward: rewards.Reward, images: UInt8[np.ndarray, "N H W 3"], prompts: Sequence[str], *, each: int
) -> tuple[list[float], str]:
    """Scores, and the cause of those that are missing. Where it fails for several prompts, each is scored by itself."""
    try:
        scores = _checked(reward.score(images, prompts), len(images))
    except Exception as error:  # a user's reward may raise anything; the loop counts it and stops when it lasts
        if len(images) <= each:
            return [float("nan")] * len(images), "".join(traceback.format_exception_only(error)).strip()
        places = [slice(start, start + each) for start in range(0, len(images), each)]
        parts = [_scored(reward, images[rows], prompts[rows], each=each) for rows in places]
        causes = dict.fromkeys(cause for _, cause in parts if cause)
        return [score for found, _ in parts for score in found], "; ".join(causes)
    if np.isfinite(scores).all():
        return scores, ""
    return [score if np.isfinite(score) else float("nan") for score in scores], f"scores that are no numbers: {scores}"


def _checked(values: Sequence[float], count: int) -> list[float]:
    listed = np.asarray(values, np.float64)
    if listed.shape != (count,):
        raise ValueError(f"got scores of shape {listed.shape} for {count} images; expected ({count},)")
    return [float(value) for value in listed]
