"""Credit measured on a group's own trajectories: a weight for each (image, step) pair, at the native mean.

Both kinds are ours. Notation: N images of a group, T steps, D latent dimensions; x_k the latents that step k begins
with; y_k the image that the network predicts from them, E[x_0 | x_k] if it is perfect.

Entropy. Were the network perfect, y_k would be the mean of y_k+1 over the noise of step k. So m_k = mean((y_k+1 -
y_k)^2), over D and the images of the group, estimates the variance of the image that this noise leaves undecided. A
Gaussian of that variance has the entropy log(2 pi e m_k) / 2 a dimension, and the weight is its exponential:

    weight_k = c sqrt(m_k)

After the last step y is the image itself. E-GRPO's entropy (arXiv 2601.00423, equation 9) is another one, known before
a run: that of the step's noise itself, log(2 pi e std^2) / 2 a dimension, by which it merges steps.

Attention. a_k is the distribution of an image token's attention over the prompt's tokens, the mean over heads. The step
moves it by the total variation, and the weight of an image's step is that, in mean over image tokens and layers:

    weight_k = c mean(|a_k+1 - a_k|_1) / 2

The network is not called after the last step, which therefore counts as the step before it. c is each image's own, so
that the mean weight over the trained steps is the native one.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from pcpo_ray.algorithm.schedule import DiffusionSchedule, Schedule
from pcpo_ray.errors import TrainingError


def predicted_image(
    schedule: Schedule, index: int, latents: Float[Tensor, "N ..."], prediction: Float[Tensor, "N ..."]
) -> Float[Tensor, "N ..."]:
    """Compute y_k from x_k and the prediction, noise or velocity, in float32 at least.

    Diffusion: (x - sqrt(1 - alpha_bar) epsilon) / sqrt(alpha_bar); flow: x - t v.
    """
    dtype = torch.promote_types(latents.dtype, torch.float32)
    x, predicted = latents.to(dtype), prediction.to(dtype)
    if isinstance(schedule, DiffusionSchedule):
        alpha_bar = schedule.alpha_bar[index]
        image: Tensor = (x - (1 - alpha_bar) ** 0.5 * predicted) / alpha_bar**0.5
    else:
        image = x - schedule.times[index] * predicted
    return image


def undecided(before: Float[Tensor, "N ..."], after: Float[Tensor, "N ..."]) -> Float[Tensor, " N"]:
    """Compute sqrt(m_k) of a step from the images predicted before and after it: one value, for each of N images."""
    return (after - before).square().mean().sqrt().expand(len(before))


def moved(before: Float[Tensor, "N Q P"], after: Float[Tensor, "N Q P"]) -> Float[Tensor, " N"]:
    """Compute a layer's mean total variation over Q image tokens, each with its attention to P tokens of the prompt."""
    return 0.5 * (after - before).abs().sum(2).mean(1)


def at_the_mean(measured: Float[Tensor, "N K"], mean: float) -> Float[Tensor, "N K"]:
    """Scale each image's measure of K trained steps so that its mean is `mean`.

    Raises TrainingError where nothing was measured at any step, or something that is not finite.
    """
    means = measured.mean(1, keepdim=True)
    if not (means.isfinite().all() and (means > 0).all()):
        raise TrainingError(
            f"the measure of credit is {means.flatten().tolist()} in mean over the trained steps of each image; "
            "expected numbers above 0: set credit.kind=reweight, whose weights need no measure"
        )
    return mean * (measured / means)
