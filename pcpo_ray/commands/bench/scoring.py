"""Scoring: groups through the scorer, against bare forward passes of the rewards' networks at the best batch size."""

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
from pcpo_ray.rewards import GroupReward, Reward, scores
from pcpo_ray.rewards.clip import Clip
from pcpo_ray.rewards.images import rgb
from pcpo_ray.workers.scorer import Scorer

Forward = Callable[[int], Any]
"""A function that passes all images through one reward's network, so many at a time."""


def measure(run: config.Run, repeats: int, say: Say) -> Sequence[Row]:
    """Measure one batch per repeat, group by group, with the rewards that are trained on."""
    device = device_here()
    say("sampling a batch")
    groups = [group.images for group in work.sampled(run, device)]
    asked = work.tasks(run, 1, 0)
    torch.set_num_threads(run.workers.scorers.threads)
    scorer = Scorer(run, device)
    images = np.concatenate(groups)

    def scored() -> None:
        for task, group in zip(asked, groups, strict=True):
            _, failures, _ = scorer.score(task, group)
            if failures:
                raise BenchError(f"a reward gave no scores, so there is nothing to measure: {failures}")

    scored()
    prompts = [text for task in asked for text in task.texts]
    forwards = {name: _forward(scorer.rewards[name], images, prompts) for name in scorer.trained}
    tried = {name: _tried(forward, len(images)) for name, forward in forwards.items()}
    best = {name: min(found, key=lambda size: found[size]) for name, found in tried.items()}

    def network() -> None:
        for name, forward in forwards.items():
            forward(best[name])

    count = len(images)
    figures, limits = alternate(lambda: count / timed(scored), lambda: count / timed(network), repeats, say)
    row = Row(
        name="scoring",
        unit="images/s",
        figures=figures,
        limits=limits,
        limit="the image towers' forwards on pixels made ready before, at the best batch (rewards without one: all)",
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


def _forward(reward: Reward | GroupReward, images: np.ndarray, prompts: Sequence[str]) -> Forward:
    """Return a CLIP model's image tower on preprocessed pixels, or any other reward's own scoring."""
    clip = getattr(reward, "clip", None)
    if not isinstance(clip, Clip):
        return lambda size: [
            scores(reward, images[start : start + size], prompts[start : start + size])
            for start in range(0, len(images), size)
        ]
    pixels = torch.stack([clip.preprocess(image) for image in rgb(images)]).to(clip.device)

    @torch.inference_mode()
    def tower(size: int) -> list[Tensor]:
        with torch.autocast(clip.device.type, torch.float16, enabled=clip.device.type == "cuda"):
            return [clip.encode_images(part) for part in pixels.split(size)]

    return tower


def _tried(forward: Forward, count: int) -> dict[int, float]:
    """Measure the seconds for all images by batch size, after a warm-up, for sizes that fit the device."""
    found = {}
    for size in work.sizes(count):
        try:
            forward(size)
            found[size] = timed(partial(forward, size))
        except torch.OutOfMemoryError:
            break
    if not found:
        raise BenchError("not even two images at once fit the device; use a smaller reward model")
    return found
