"""The newer flow models: how their own pipelines are called to sample as we do."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tests.support import small_flows


@dataclass(frozen=True)
class Family:
    """A kind's small model, and how its own pipeline is called to sample as we do.

    `guided(scale, count)` has the pipeline's arguments for a guidance scale and so many texts, and `extra` any others.
    `length` is the number of tokens, where it is to be told; `scales` are guidance scales, without and with effect.
    `prepare` changes the pipeline, `given` turns our noise into its own, and `taken` its latents into ours. A pipeline
    that is called `one_by_one` gives images other places in other company.
    """

    make: Callable[[Path], Path]
    guided: Callable[[float, int], Mapping[str, Any]]
    length: int | None = small_flows.LENGTH
    size: tuple[int, int] = (32, 16)
    scales: tuple[float, ...] = (1.0, 3.0)
    extra: Mapping[str, Any] = field(default_factory=dict)
    prepare: Callable[[Any], None] = lambda pipeline: None
    given: Callable[[Any, torch.Tensor], torch.Tensor] = lambda denoiser, noise: noise
    taken: Callable[[Any, torch.Tensor], torch.Tensor] = lambda denoiser, latents: latents
    one_by_one: bool = False


def unpacked(denoiser, noise):
    return denoiser.latents_of(noise)


def flat(denoiser, noise):
    return noise.flatten(2).transpose(1, 2)


def upright(denoiser, latents):
    return latents.transpose(1, 2).reshape(-1, *denoiser.latent_shape)


def with_euler(pipeline):
    """Take the place of a solver of second order, whose steps are not affine in one prediction."""
    pipeline.scheduler = small_flows.scheduler(shift=pipeline.scheduler.config.flow_shift)


def by_one_less(scale: float, count: int) -> Mapping[str, Any]:
    return {"guidance_scale": scale - 1}


def by_true_cfg_scale(scale: float, count: int) -> Mapping[str, Any]:
    return {"true_cfg_scale": scale, "negative_prompt": [""] * count}


def by_guidance_scale(scale: float, count: int) -> Mapping[str, Any]:
    return {"guidance_scale": scale}


FAMILIES: Mapping[str, Family] = {
    "flux2_klein": Family(small_flows.flux2_klein, by_guidance_scale, given=unpacked),
    "flux2_dev": Family(small_flows.flux2_dev, by_guidance_scale, length=2 * small_flows.LENGTH, given=unpacked),
    "z_image": Family(small_flows.z_image, by_one_less, scales=(1.0, 1.5, 3.0)),
    "qwen_image": Family(small_flows.qwen_image, by_true_cfg_scale),
    "sana": Family(
        small_flows.sana, by_guidance_scale, size=(64, 32), extra={"use_resolution_binning": False}, prepare=with_euler
    ),
    "chroma": Family(small_flows.chroma, by_guidance_scale, length=16),
    "krea2": Family(small_flows.krea2, by_one_less, scales=(1.0, 1.5, 3.0)),
    "qwen_image_21": Family(
        small_flows.qwen_image_21,
        by_true_cfg_scale,
        length=None,
        size=(64, 32),
        given=flat,
        taken=upright,
        one_by_one=True,
    ),
    "lumina2": Family(small_flows.lumina2, by_guidance_scale, length=256, size=(64, 32)),
}
"""By model.kind."""


def guided(kind: str) -> Mapping[str, Any]:
    """The changes of a run with which a kind's small model is guided, at its size."""
    (height, width), scale = FAMILIES[kind].size, FAMILIES[kind].scales[-1]
    return {"sampling__guidance_scale": scale, "sampling__height": height, "sampling__width": width}
