"""The two surrogates on the decomposed log-ratio of an affine step, its KL divergence and importance weights.

Notation: B samples (at one step, or each at a step of its own); D latent dimensions; d = theta's prediction - the old
one; z the noise drawn; w and s the step's weight and sign; A advantage; rho the ratio of densities; xi the clip range.
Every log-ratio is the mean over D, not the sum: that is the quantity which published clip ranges are set for.
"""

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Objective: TypeAlias = Literal["clipped_ratio", "log_hinge"]


def log_ratio(
    prediction: Float[Tensor, "B ..."],
    old_prediction: Float[Tensor, "B ..."],
    noise: Float[Tensor, "B ..."],
    *,
    weight: float | Float[Tensor, " B"],
    sign: float | Float[Tensor, " B"],
) -> Float[Tensor, " B"]:
    """Compute log rho = -[ s w mean(d z) + w^2 mean(d^2) / 2 ], differentiable in `prediction` (arXiv 2509.25774).

    With the step's own weight this is the exact log-ratio of its two Gaussians at the x_next that was drawn; with
    another, that of a step which had this weight. Exactly 0 at d = 0 in every dtype, as no density is recovered
    from a rounded x_next. Half types are taken to float32 before anything is subtracted.
    """
    d, z = change_and_noise(prediction, old_prediction, noise)
    w, s = per_sample(weight, d), per_sample(sign, d)
    return -(w * d * (s * z + 0.5 * w * d)).flatten(1).mean(1)


def rounded(prediction: Float[Tensor, "B ..."], dtype: torch.dtype) -> Float[Tensor, "B ..."]:
    """Round to the values of `dtype`, keeping the tensor's own dtype and an unrounded gradient.

    Stored predictions were rounded so, and equal ones stay equal. A cast back and forth would round the gradient too,
    which is then 0 in float16.
    """
    if dtype == prediction.dtype:
        return prediction
    detached = prediction.detach()
    return prediction + (detached.to(dtype).to(prediction.dtype) - detached)  # the sum is exact


def clipped_ratio(
    log_ratio: Float[Tensor, " B"], advantage: Float[Tensor, " B"], *, clip_range: float | Float[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """Compute PPO's loss plus A: max(-A (rho - 1), -A clip(rho - 1, -xi, xi)) (arXiv 1707.06347, equation 7).

    Written in rho - 1, by expm1: a float32 rho near 1 has three digits left for a clip range of 1e-4. The constant A
    that this leaves out has no gradient. It equals the hinge max(0, xi |A| - A (rho - 1)) less the constant xi |A|.
    """
    change = torch.expm1(log_ratio)
    return torch.maximum(-advantage * change, -advantage * change.clamp(-clip_range, clip_range))  # type: ignore[arg-type]  # torch knows no union


def log_hinge(
    log_ratio: Float[Tensor, " B"], advantage: Float[Tensor, " B"], *, clip_range: float | Float[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """Compute PCPO's loss: max(0, xi |A| - A log rho) (arXiv 2509.25774)."""
    return torch.relu(clip_range * advantage.abs() - advantage * log_ratio)


def kl_divergence(
    prediction: Float[Tensor, "B ..."], reference: Float[Tensor, "B ..."], *, weight: float | Float[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """Compute KL(theta || reference) of a step's Gaussians per dimension, w^2 mean(d^2) / 2, d from `reference`.

    `weight` is the step's own, |gain| / std, whatever credit it carries (Flow-GRPO, arXiv 2505.05470).
    """
    d = prediction.to(torch.promote_types(prediction.dtype, torch.float32)) - reference
    squares = d.square().flatten(1).mean(1)
    return per_sample(0.5 * weight**2, squares) * squares


def importance(lag: Float[Tensor, " B"], *, dimensions: int, most: float) -> Float[Tensor, " B"]:
    """Compute min(ratio of densities, most): V-trace's truncated importance weight (arXiv 1802.01561, equation 1).

    `lag` is the mean log-ratio per dimension, at the sampler's own weights, of the policy that learns to the one that
    sampled; the ratio of the two densities of a step is exp(`dimensions` * lag). The surrogate is then taken of the
    log-ratio to the policy that learns (decoupled PPO, arXiv 2110.00641).
    """
    return (dimensions * lag).clamp(max=math.log(most)).exp()


def spread(weights: Float[Tensor, " B"], counted: Bool[Tensor, " B"], *, most: float) -> Float[Tensor, "4"]:
    """Sum over the importance weights w that are `counted`; the sums add up over passes and ranks.

    Returns their number, the sum of w, the sum of w^2, and how many are truncated. Nothing here waits for the device.
    """
    count = counted.double()
    w = weights.double() * count
    truncated = (weights >= most * (1 - 1e-6)) * count
    return torch.stack([count.sum(), w.sum(), w.square().sum(), truncated.sum()])


def spread_in_numbers(sums: Sequence[float]) -> dict[str, float] | None:
    """Compute the importance weights' `mean`, `std`, `truncated` fraction and `effective` fraction; None if none exist.

    The effective fraction is (sum w)^2 / (n sum w^2), the effective sample size over the number of samples.
    """
    count, total, squares, truncated = sums
    if not count:
        return None
    return {
        "mean": total / count,
        "std": std_of_sums(total, squares, count),
        "truncated": truncated / count,
        "effective": total**2 / (count * squares) if squares else 0.0,
    }


def std_of_sums(summed: float, squared: float, count: float) -> float:
    """Compute the std of `count` values from their sum and sum of squares."""
    return math.sqrt(max(0.0, squared / count - (summed / count) ** 2))


def change_and_noise(
    prediction: Float[Tensor, "B ..."], old_prediction: Float[Tensor, "B ..."], noise: Float[Tensor, "B ..."]
) -> tuple[Float[Tensor, "B ..."], Float[Tensor, "B ..."]]:
    """Return d and z, in float32 at least."""
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    return prediction.to(dtype) - old_prediction.to(dtype), noise.to(dtype)


def per_sample(value: float | Float[Tensor, " B"], like: Float[Tensor, "B ..."]) -> float | Float[Tensor, "B ..."]:
    """Return a number as it is, and one value per sample in the shape that multiplies `like`."""
    if not isinstance(value, Tensor):
        return value  # a tensor would have to be copied to the device
    return value.to(like).reshape(-1, *[1] * (like.ndim - 1))
