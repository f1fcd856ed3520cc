"""Canary: one prediction on fixed inputs, to compare networks that hold the same weights.

Equal bytes in the parameters do not prove that the network uses them: an adapter may be switched off, scaled
differently or attached elsewhere. So the learner sends its prediction with each version, and a sampler must reproduce
it before the version counts as loaded.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from pcpo_ray.data.seeds import generator
from pcpo_ray.errors import WeightsError
from pcpo_ray.models.policy import Policy

VALUES = 64
"""The number of values compared, evenly spaced in the prediction."""

LIMITS = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}
"""Largest accepted difference by dtype, relative to the largest value: devices and thread counts may differ."""


def output(policy: Policy) -> Float[Tensor, "1 ..."]:
    """Predict at a fixed latent and text and the middle timestep, whatever the run's seed."""
    denoiser = policy.denoiser
    latents = denoiser.initial_noise(generator("canary"))[None].to(denoiser.device)
    return policy.predict(latents, len(policy.schedule) // 2, denoiser.fixed_text())


@torch.no_grad()
def prediction(policy: Policy) -> tuple[float, ...]:
    """Compute `output` and take some of its values, to compare."""
    flat = output(policy).flatten().float().cpu()
    return tuple(flat[:: max(1, len(flat) // VALUES)][:VALUES].tolist())


def check(here: Sequence[float], sent: Sequence[float], *, dtype: str, version: int, remedy: str) -> None:
    """Raise WeightsError unless both predictions agree; `remedy` helps if one is not finite."""
    if len(here) != len(sent):
        raise WeightsError(
            f"the canary of version {version} has {len(here)} values here, {len(sent)} where it was sent"
        )
    for where, values in (("the learner", sent), ("this sampler", here)):
        if not all(map(math.isfinite, values)):
            raise WeightsError(
                f"with the weights of version {version} the prediction of {where} is not finite; {remedy}"
            )
    scale = max(abs(value) for value in sent) or 1.0
    for mine, theirs in zip(here, sent, strict=True):
        if abs(mine - theirs) / scale > LIMITS[dtype]:
            raise WeightsError(
                f"with the weights of version {version} this sampler predicts {mine:.6g} on the canary input, the "
                f"learner {theirs:.6g} (of at most {scale:.3g}; {dtype} may differ by {LIMITS[dtype]:g} of it): "
                "the bytes arrived, but its network does not use them as the learner's does"
            )
