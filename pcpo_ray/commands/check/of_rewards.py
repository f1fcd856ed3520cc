"""The check of a reward, asked about images and prompts that the package draws (rewards/probes.py)."""

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import torch

from pcpo_ray import config, rewards
from pcpo_ray.commands.check import known
from pcpo_ray.commands.check.finding import Finding, judged
from pcpo_ray.config.shipped import Ranks
from pcpo_ray.process import plugins
from pcpo_ray.process.plugins import resolve_class
from pcpo_ray.rewards import probes
from pcpo_ray.workers.scorer import checked

NEAR = 0.05
"""The fraction of the spread of its scores by which a score may differ where it should be the same (half precision)."""

ROUNDING = 1e-6
"""The fraction of a score that the order of a sum may change."""

PATIENCE = 10.0
"""Seconds that a reward's server may be away here; a run has the patience that its config says."""

EDGE = 8
"""The width in pixels of an image's edge, on probes of 256 x 256."""

Ask = Callable[[np.ndarray, Sequence[str]], np.ndarray]


def tried(
    run: config.Run,
    reward: config.Reward,
    own_prompts: Sequence[str],
    device: torch.device,
    sampled: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> list[Finding]:
    """Try one reward in all ways that apply to it; what raises is a finding too.

    `sampled` are images that the run's model made, by prompt.
    """
    found: list[Finding] = []
    try:
        found.extend(_tried(run, reward, own_prompts, device, sampled))
    except Exception as error:  # a reward may raise anything
        found.append(
            Finding(
                part=reward.name,
                tried="it scores the probe images",
                verdict="failed",
                detail=plugins.explained(error),
                remedy="fix the reward, its files or its server",
            )
        )
    return found


def _tried(
    run: config.Run,
    reward: config.Reward,
    own_prompts: Sequence[str],
    device: torch.device,
    sampled: Mapping[str, np.ndarray],
) -> Iterator[Finding]:
    name, found = reward.name, probes.of(reward)
    if isinstance(reward, config.Remote | config.Judge):
        reward = dataclasses.replace(reward, patience=min(reward.patience, PATIENCE))
    shipped = not isinstance(reward, config.CustomReward | config.Remote)
    prompts = list(found.prompts if shipped else [*own_prompts, *own_prompts, *own_prompts, *own_prompts][:4])
    if isinstance(reward, config.CustomReward):
        yield _order(reward)
    made = rewards.load(reward, device)
    grouped = isinstance(made, rewards.GroupReward)

    def ask(images: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        with plugins.isolated(reward.kind, run.seed):
            found = np.array(checked(rewards.scores(made, images.copy(), list(texts)), len(images)))
            return np.where(np.isfinite(found), found, np.nan)

    first = ask(found.images, prompts)
    yield judged(
        name, "scores are finite", bool(np.isfinite(first).all()), _shown(first), "missing scores drop whole groups"
    )
    there = first[np.isfinite(first)]
    if not len(there):
        return  # without a score there is nothing to compare
    near = NEAR * float(np.ptp(there)) + ROUNDING * float(np.abs(there).max())
    yield judged(
        name,
        "the same question has the same answer",
        _same(ask(found.images, prompts), first, near),
        "",
        "a score must not depend on the clock, on random numbers of its own, or on earlier calls",
    )
    if grouped:
        yield Finding(
            part=name,
            tried="scores are the same in other company",
            verdict="not applicable",
            detail="it compares the images of a group",
        )
    else:
        alone = np.concatenate([ask(found.images[n : n + 1], prompts[n : n + 1]) for n in range(4)])
        turned = ask(found.images[::-1], prompts[::-1])[::-1]
        yield judged(
            name,
            "scores are the same in other company",
            _same(alone, first, near) and _same(turned, first, near),
            f"alone {_shown(alone)}, turned around {_shown(turned)}, together {_shown(first)}",
            "return one score an image in the images' order, and use no statistics of the batch",
        )
    others = np.concatenate([found.images[:2], found.marred[2:]])
    by_image = ask(others, prompts[:1] * 4)
    yield judged(
        name,
        "the image moves it",
        _moved(by_image),
        _shown(by_image),
        "it gives every image the same score: are its weights zeros, or its arguments swapped?",
    )
    if not isinstance(reward, config.CustomReward) and reward.clip is not None and _moved(by_image):
        yield _whole(reward, ask, found)
    yield _by_prompt(reward, made, ask, found.images, prompts)
    yield _ranked(reward, ask, found)
    if isinstance(reward, config.Ocr | config.DdddOcr):
        yield _above_noise(reward, ask, found)
    yield _known(reward, first, lambda: ask(found.marred, prompts), device)
    for prompt, images in sampled.items():
        yield _own(reward, ask(images, [prompt] * len(images)), grouped=grouped)


def _order(reward: config.CustomReward) -> Finding:
    """Check that the method's arguments are not named the other way round."""
    cls = resolve_class(reward.kind)
    method = next(getattr(cls, name) for name in rewards.METHODS if hasattr(cls, name))
    names = list(inspect.signature(method).parameters)[1:3]
    swapped = len(names) == 2 and ("prompt" in names[0] or "text" in names[0] or "image" in names[1])
    return judged(
        reward.name,
        "its arguments are images, then prompts",
        not swapped,
        f"({', '.join(names)})",
        "they are given in the order (images, prompts); swap the parameters",
    )


def _by_prompt(reward: config.Reward, made: object, ask: Ask, images: np.ndarray, prompts: Sequence[str]) -> Finding:
    what = "the prompt moves it"
    claims = getattr(made if isinstance(reward, config.CustomReward) else reward, "reads_prompt", None)
    if isinstance(made, rewards.GroupReward):
        return Finding(part=reward.name, tried=what, verdict="not applicable", detail="it compares images")
    if claims is False:
        return Finding(part=reward.name, tried=what, verdict="not applicable", detail="it does not read the prompt")
    if len(set(prompts)) < 2:
        return Finding(part=reward.name, tried=what, verdict="not applicable", detail="the run has one prompt")
    scores = ask(np.repeat(images[:1], 4, axis=0), prompts)
    moved = _moved(scores)
    if claims is None and not moved:
        detail = "it ignores the prompt; if it should not, say so with `reads_prompt = True` in its class"
        return Finding(part=reward.name, tried=what, verdict="not applicable", detail=detail)
    return judged(reward.name, what, moved, _shown(scores), "it gives one image the same score for every prompt")


def _ranked(reward: config.Reward, ask: Ask, found: probes.Probes) -> Finding:
    """Check what is known of the probes' order."""
    ranks: Ranks = "none" if isinstance(reward, config.CustomReward) else reward.ranks
    if ranks == "none":
        return Finding(
            part=reward.name, tried="known rankings", verdict="not applicable", detail="none is known for it"
        )
    if ranks == "own":
        what = "images of their prompts above images of others"
        right = ask(found.images, found.prompts).mean()
        wrong = np.mean([ask(np.roll(found.images, n, axis=0), found.prompts).mean() for n in (1, 2, 3)])
    else:
        what = "plain images above those with noise and a grid"
        right, wrong = (float(ask(images, found.prompts).mean()) for images in (found.images, found.marred))
        if ranks == "marred":
            what, right, wrong = "images with noise and a grid above plain ones", wrong, right
    return judged(
        reward.name,
        what,
        _above(right, wrong),
        f"{right:.4g} and {wrong:.4g}",
        "are these the weights of its kind, with their own preprocessing?",
    )


def _whole(reward: config.Reward, ask: Ask, found: probes.Probes) -> Finding:
    """Check that a network sees a square image to its edges: a crop that is not its own would cut them off."""
    framed = found.images[:2].copy()
    inner = framed[:, EDGE:-EDGE, EDGE:-EDGE].copy()
    framed = 255 - framed
    framed[:, EDGE:-EDGE, EDGE:-EDGE] = inner
    scores = np.concatenate([ask(images, [found.prompts[0]] * 2) for images in (found.images[:2], framed)])
    return judged(
        reward.name,
        "the image's edges move it",
        bool((scores[:2] != scores[2:]).all()),
        _shown(scores),
        "the images are cropped before the network sees them: is the preprocessing that of its model?",
    )


def _above_noise(reward: config.Ocr | config.DdddOcr, ask: Ask, found: probes.Probes) -> Finding:
    """Check that words can be told from noise."""
    noise = np.random.default_rng(0).integers(0, 256, found.images.shape, dtype=np.uint8)
    right, wrong = (float(ask(images, found.prompts).mean()) for images in (found.images, noise))
    return judged(
        reward.name,
        "rendered words above noise",
        _above(right, wrong),
        f"{right:.4g} and {wrong:.4g}",
        f"reinstall {reward.extra.modules[0]}",
    )


def _own(reward: config.Reward, scores: np.ndarray, *, grouped: bool) -> Finding:
    """Check the scores of images that the run's model made.

    Equal ones are no fault of the reward's, and of two images that are compared they say nothing.
    """
    equal = np.ptp(scores) == 0 and not grouped
    return judged(
        reward.name,
        "it scores the run's own images",
        bool(np.isfinite(scores).all()),
        _shown(scores) + (", which are equal: a group such as this teaches nothing" if equal else ""),
        "missing scores drop whole groups",
    )


def _known(
    reward: config.Reward, scores: np.ndarray, marred: Callable[[], np.ndarray], device: torch.device
) -> Finding:
    """Compare the scores of the probes, plain and marred, with those that are known."""
    expected = known.of(reward)
    if expected is None:
        return Finding(
            part=reward.name,
            tried="known scores",
            verdict="not applicable",
            detail="none are known for its files and settings",
        )
    found, right = np.concatenate([scores, marred()]), np.array([*expected.scores, *expected.marred])
    within = max(expected.within, expected.on_gpu if device.type == "cuda" else 0.0)
    return judged(
        reward.name,
        "known scores",
        bool(np.abs(found - right).max() <= within),
        f"{_shown(found)}, expected {_shown(right)}",
        "the images reach it otherwise than they should: size, crop, mean and std, activation, colours' order",
    )


def _same(one: np.ndarray, other: np.ndarray, near: float) -> bool:
    """Return whether scores are alike, and missing for the same images."""
    return bool(np.allclose(one, other, rtol=0, atol=near, equal_nan=True))


def _above(right: float, wrong: float) -> bool:
    """Return whether one mean is above another one by more than the order of a sum makes out."""
    return right - wrong > ROUNDING * max(abs(right), abs(wrong))


def _moved(scores: np.ndarray) -> bool:
    """Return whether some scores differ; a missing one differs from a number."""
    there = scores[np.isfinite(scores)]
    return 0 < len(there) < len(scores) or bool(len(there) and np.ptp(there) > 0)


def _shown(scores: np.ndarray) -> str:
    return " ".join(f"{score:.4g}" for score in scores)
