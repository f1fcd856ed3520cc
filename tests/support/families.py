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
    `length` is the number of tokens; `scales` are guidance scales, without and with effect. `prepare` changes the
    pipeline, and `given` turns our noise into its own.
    """

    make: Callable[[Path], Path]
    guided: Callable[[float, int], Mapping[str, Any]]
    length: int = small_flows.LENGTH
    size: tuple[int, int] = (32, 16)
    scales: tuple[float, ...] = (1.0, 3.0)
    extra: Mapping[str, Any] = field(default_factory=dict)
    prepare: Callable[[Any], None] = lambda pipeline: None
    given: Callable[[Any, torch.Tensor], torch.Tensor] = lambda denoiser, noise: noise


def unpacked(denoiser, noise):
    return denoiser.latents_of(noise)


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
    "z_image": Family(small_flows.z_image, by_one_less),
    "qwen_image": Family(small_flows.qwen_image, by_true_cfg_scale),
    "sana": Family(
        small_flows.sana, by_guidance_scale, size=(64, 32), extra={"use_resolution_binning": False}, prepare=with_euler
    ),
    "chroma": Family(small_flows.chroma, by_guidance_scale, length=16),
    "krea2": Family(small_flows.krea2, by_one_less),
}
"""By model.kind."""
