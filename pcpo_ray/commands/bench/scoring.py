"""Scoring: groups through the scorer, against the bare forwards of the rewards' networks at the best batch."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pcpo_ray import config
from pcpo_ray.commands.bench import work
from pcpo_ray.commands.bench.rows import Goal, Row, Say, alternate, timed
from pcpo_ray.data.tensors import device_here
from pcpo_ray.errors import BenchError
from pcpo_ray.rewards import Reward
from pcpo_ray.rewards.clip import Clip
from pcpo_ray.rewards.pictures import rgb
from pcpo_ray.workers.scorer import Scorer

Forward = Callable[[int], Any]
"""All pictures through one reward's network, so many at a time."""


def measure(run: config.Run, repeats: int, say: Say) -> Sequence[Row]:
    """A repeat is one batch, a group at a time, by the rewards that are trained on."""
    device = device_here()
    say("sampling a batch")
    groups = [group.pictures for group in work.sampled(run, device)]
    asked = work.tasks(run, 1, 0)
    torch.set_num_threads(run.workers.scorers.threads)
    scorer = Scorer(run, device)
    pictures = np.concatenate(groups)

    def scored() -> None:
        for task, group in zip(asked, groups, strict=True):
            _, failures, _ = scorer.score(task, group)
            if failures:
                raise BenchError(f"a reward gave no scores, so there is nothing to measure: {failures}")

    scored()
    prompts = [text for task in asked for text in task.texts]
    forwards = {name: _forward(scorer.rewards[name], pictures, prompts) for name in scorer.trained}
    tried = {name: _tried(forward, len(pictures)) for name, forward in forwards.items()}
    best = {name: min(found, key=lambda size: found[size]) for name, found in tried.items()}

    def network() -> None:
        for name, forward in forwards.items():
            forward(best[name])

    count = len(pictures)
    figures, limits = alternate(lambda: count / timed(scored), lambda: count / timed(network), repeats, say)
    row = Row(
        name="scoring",
        unit="images/s",
        figures=figures,
        limits=limits,
        limit="the picture towers' forwards on pixels made ready before, at the best batch (rewards without one: all)",
        goal=Goal(bound="at least", value=0.95),
        facts={
            "images": count,
            "a group": run.rollout.images,
            **{
                f"{name}: bare images/s by batch": {str(size): count / seconds for size, seconds in found.items()}
                for name, found in tried.items()
            },
        },
    )
    return [row]


def _forward(reward: Reward, pictures: np.ndarray, prompts: Sequence[str]) -> Forward:
    """A CLIP model's picture tower, its pixels made ready; any other reward's own scores."""
    clip = getattr(reward, "clip", None)
    if not isinstance(clip, Clip):
        return lambda size: [
            reward.score(pictures[start : start + size], prompts[start : start + size])
            for start in range(0, len(pictures), size)
        ]
    pixels = torch.stack([clip.preprocess(picture) for picture in rgb(pictures)]).to(clip.device)

    @torch.inference_mode()
    def tower(size: int) -> list[Tensor]:
        with torch.autocast(clip.device.type, torch.float16, enabled=clip.device.type == "cuda"):
            return [clip.encode_images(part) for part in pixels.split(size)]

    return tower


def _tried(forward: Forward, count: int) -> dict[int, float]:
    """Seconds for all pictures by batch, once they have been through, where the device has room for the batch."""
    found = {}
    for size in work.sizes(count):
        try:
            forward(size)
            found[size] = timed(partial(forward, size))
        except torch.OutOfMemoryError:
            break
    if not found:
        raise BenchError("not even two pictures at once fit the device; use a smaller reward model")
    return found
