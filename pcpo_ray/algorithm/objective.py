"""The three surrogates on the decomposed log-ratio of an affine step, its KL divergence and importance weights.

Notation: B samples (all at one timestep, or each at its own); D latent dimensions; d = theta's prediction - the old
one; z the drawn noise; w and s the step's weight and sign; A advantage; rho the ratio of densities; xi the clip range.
Every log-ratio is the mean over D, not the sum: published clip ranges are set for the mean.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Objective: TypeAlias = Literal["clipped_ratio", "log_hinge", "divergence_mask"]

Loss: TypeAlias = Callable[[Float[Tensor, " B"], Float[Tensor, " B"]], Float[Tensor, " B"]]
"""Another objective: the loss of each sample from its log-ratio and advantage, differentiable in the log-ratio."""


def log_ratio(
    prediction: Float[Tensor, "B ..."],
    old_prediction: Float[Tensor, "B ..."],
    noise: Float[Tensor, "B ..."],
    *,
    weight: float | Float[Tensor, " B"],
    sign: float | Float[Tensor, " B"],
    quadratic: bool = True,
) -> Float[Tensor, " B"]:
    """Compute log rho = -[ s w mean(d z) + w^2 mean(d^2) / 2 ], differentiable in `prediction` (arXiv 2509.25774).

    With the step's own weight this is the exact log-ratio of its two Gaussians at the x_next that was drawn. With
    another weight it is that of a step with this weight. It is exactly 0 at d = 0 in every dtype, because no density is
    recovered from a rounded x_next. Half types are converted to float32 before anything is subtracted. Without
    `quadratic` it is the first term only, whose mean over the noise is 0 (GRPO-Guard, arXiv 2510.22319).
    """
    d, z = change_and_noise(prediction, old_prediction, noise)
    w, s = per_sample(weight, d), per_sample(sign, d)
    if not quadratic:
        return -(w * d * (s * z)).flatten(1).mean(1)
    return -(w * d * (s * z + 0.5 * w * d)).flatten(1).mean(1)


def noise_under(
    prediction: Float[Tensor, "B ..."],
    sampled_prediction: Float[Tensor, "B ..."],
    noise: Float[Tensor, "B ..."],
    *,
    weight: float | Float[Tensor, " B"],
    sign: float | Float[Tensor, " B"],
) -> Float[Tensor, "B ..."]:
    """Compute the noise with which another prediction draws the same x_next: z + s w (prediction - sampled).

    A sampler drew x_next = scale x + gain v + std z from its own prediction v. From the prediction v' the same x_next
    is drawn by z' with gain v + std z = gain v' + std z', and gain / std = -s w at the sampler's own weight. It is
    exactly z where both predictions are equal.
    """
    d, z = change_and_noise(prediction, sampled_prediction, noise)
    moved: Tensor = z + per_sample(sign * weight, d) * d
    return moved


def rounded(prediction: Float[Tensor, "B ..."], dtype: torch.dtype) -> Float[Tensor, "B ..."]:
    """Round a prediction to the values of `dtype`, keeping its own dtype and its unrounded gradient.

    Stored predictions were rounded in the same way, so equal predictions stay equal. A cast back and forth would round
    the gradient too, to 0 in float16.
    """
    if dtype == prediction.dtype:
        return prediction
    detached = prediction.detach()
    return prediction + (detached.to(dtype).to(prediction.dtype) - detached)  # the sum is exact


def clipped_ratio(
    log_ratio: Float[Tensor, " B"], advantage: Float[Tensor, " B"], *, clip_range: float | Float[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """Compute PPO's loss plus A: max(-A (rho - 1), -A clip(rho - 1, -xi, xi)) (arXiv 1707.06347, equation 7).

    It is written in rho - 1, by expm1, because a float32 rho near 1 has only three digits left for a clip range of
    1e-4. The constant A that it leaves out has no gradient. It equals the hinge max(0, xi |A| - A (rho - 1)) less the
    constant xi |A|.
    """
    change = torch.expm1(log_ratio)
    return torch.maximum(-advantage * change, -advantage * change.clamp(-clip_range, clip_range))  # type: ignore[arg-type]  # torch knows no union


def log_hinge(
    log_ratio: Float[Tensor, " B"], advantage: Float[Tensor, " B"], *, clip_range: float | Float[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """Compute PCPO's loss: max(0, xi |A| - A log rho) (arXiv 2509.25774)."""
    return torch.relu(clip_range * advantage.abs() - advantage * log_ratio)


def divergence_mask(
    log_ratio: Float[Tensor, " B"],
    advantage: Float[Tensor, " B"],
    divergence: Float[Tensor, " B"],
    *,
    threshold: float | Float[Tensor, " B"],
) -> Float[Tensor, " B"]:
    """Compute Flow-DPPO's loss plus A, -A (rho - 1), set to 0 where `masked` (arXiv 2606.11025)."""
    loss = -advantage * torch.expm1(log_ratio)
    return torch.where(masked(log_ratio, advantage, divergence, threshold=threshold), torch.zeros_like(loss), loss)


def masked(
    log_ratio: Float[Tensor, " B"],
    advantage: Float[Tensor, " B"],
    divergence: Float[Tensor, " B"],
    *,
    threshold: float | Float[Tensor, " B"],
) -> Bool[Tensor, " B"]:
    """Find the samples whose divergence has reached `threshold` and whose ratio would move further away from 1.

    `divergence` is that of the step's Gaussians from the weights that sampled, per dimension (`kl_divergence`).
    """
    return (divergence >= threshold) & (advantage * log_ratio > 0)


def slope(loss: Loss, log_ratio: Float[Tensor, " B"], advantage: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Compute d loss / d log rho of each sample, whatever the objective; 0 where it does not depend on log rho."""
    with torch.enable_grad():
        at = log_ratio.detach().requires_grad_()
        total = loss(at, advantage).sum()
        if not total.requires_grad:
            return torch.zeros_like(log_ratio)
        (found,) = torch.autograd.grad(total, at, allow_unused=True)
    return torch.zeros_like(log_ratio) if found is None else found


def kl_divergence(
    prediction: Float[Tensor, "B ..."], reference: Float[Tensor, "B ..."], *, weight: float | Float[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """Compute KL(theta || reference) of a step's Gaussians, per dimension: w^2 mean(d^2) / 2.

    d is the difference of the predictions. `weight` is the step's own, |gain| / std, whatever credit it carries
    (Flow-GRPO, arXiv 2505.05470).
    """
    d = prediction.to(torch.promote_types(prediction.dtype, torch.float32)) - reference
    squares = d.square().flatten(1).mean(1)
    return per_sample(0.5 * weight**2, squares) * squares


def importance(lag: Float[Tensor, " B"], *, dimensions: int, most: float) -> Float[Tensor, " B"]:
    """Compute min(ratio of densities, most), V-trace's truncated importance weight (arXiv 1802.01561, equation 1).

    `lag` is the mean log-ratio per dimension of the policy that is trained to the one that sampled, at the sampler's
    own weights. The ratio of the two densities of a step is exp(`dimensions` * lag). The surrogate then uses the
    log-ratio to the policy that is trained: with theta, old and sampler for the three policies, the loss is
    min(old / sampler, most) * surrogate(theta / old) (decoupled PPO, arXiv 2110.00641; asynchronous, arXiv 2505.24298).
    """
    return (dimensions * lag).clamp(max=math.log(most)).exp()


def spread(weights: Float[Tensor, " B"], counted: Bool[Tensor, " B"], *, most: float) -> Float[Tensor, "4"]:
    """Sum over the importance weights that are `counted`: their number, w, w^2, and the number truncated.

    Such sums add up over passes and ranks. Nothing here waits for the device.
    """
    count = counted.double()
    w = weights.double() * count
    truncated = (weights >= most * (1 - 1e-6)) * count
    return torch.stack([count.sum(), w.sum(), w.square().sum(), truncated.sum()])


def spread_in_numbers(sums: Sequence[float]) -> dict[str, float] | None:
    """Summarise importance weights: `mean`, `std`, `truncated` fraction, `effective` fraction; None if there are none.

    The effective fraction is (sum w)^2 / (n sum w^2): an equally weighted sample of that size tells as much.
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
    """Compute the std of `count` values from their sum and their sum of squares."""
    return math.sqrt(max(0.0, squared / count - (summed / count) ** 2))


def change_and_noise(
    prediction: Float[Tensor, "B ..."], old_prediction: Float[Tensor, "B ..."], noise: Float[Tensor, "B ..."]
) -> tuple[Float[Tensor, "B ..."], Float[Tensor, "B ..."]]:
    """Compute d and z, in float32 at least."""
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    return prediction.to(dtype) - old_prediction.to(dtype), noise.to(dtype)


def per_sample(value: float | Float[Tensor, " B"], like: Float[Tensor, "B ..."]) -> float | Float[Tensor, "B ..."]:
    """Shape one value a sample so that it multiplies `like`; leave a plain number as it is."""
    if not isinstance(value, Tensor):
        return value  # a tensor of it would have to be copied to the device
    return value.to(like).reshape(-1, *[1] * (like.ndim - 1))
