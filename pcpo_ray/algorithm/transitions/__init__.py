"""One denoising step, which is affine whatever the sampler: three numbers, known before the run starts.

    x_next = scale * x + gain * prediction + std * z,    z ~ N(0, 1)

How the log-probability of a step responds to the policy depends on a single number, `weight` = |gain| / std.
Notation: B samples; D latent dimensions, all but the first; log-probabilities are the mean over D.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pcpo_ray.errors import ScheduleError

LOG_SQRT_TWO_PI = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True, kw_only=True)
class AffineStep:
    """x_next = scale * x + gain * prediction + std * z. Raises ScheduleError unless all are finite and std >= 0."""

    scale: float
    gain: float
    std: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and math.isfinite(self.gain) and 0 <= self.std < math.inf):
            raise ScheduleError(f"got {self}; expected finite numbers and std >= 0: look at the schedule it came from")

    @property
    def weight(self) -> float:
        """The weight w = |gain| / std: how far the policy moves the step in units of its noise; inf without noise."""
        return abs(self.gain) / self.std if self.std > 0 else math.inf

    @property
    def sign(self) -> float:
        """The sign s of -gain: 1 if a larger prediction gives a smaller x_next, as in every sampler here."""
        return float((self.gain < 0) - (self.gain > 0))

    def draw(
        self, latents: Float[Tensor, "B ..."], prediction: Float[Tensor, "B ..."], noise: Float[Tensor, "B ..."]
    ) -> tuple[Float[Tensor, "B ..."], Float[Tensor, " B"]]:
        """Draw the next latents, in the dtype of `latents`, and compute the log-probability of the draw.

        The log-probability is that of the noise itself, so rounding x_next to a half type cannot change it. A step
        without noise is a point mass and gives +inf.
        """
        return self.moved(latents, prediction, noise), self._log_density(_precise(noise))

    def moved(
        self, latents: Float[Tensor, "B ..."], prediction: Float[Tensor, "B ..."], noise: Float[Tensor, "B ..."]
    ) -> Float[Tensor, "B ..."]:
        """Compute the next latents, in the dtype of `latents`: equal input gives equal bits on every device.

        IEEE 754 rounds each operation element by element, so the order of the operations fixes the bits.
        """
        return (self._mean(latents, prediction) + self.std * _precise(noise)).to(latents.dtype)

    def log_prob(
        self, next_latents: Float[Tensor, "B ..."], latents: Float[Tensor, "B ..."], prediction: Float[Tensor, "B ..."]
    ) -> Float[Tensor, " B"]:
        """Compute the log-probability of `next_latents`, recovering the noise from them (DDPO's replay, 2305.13301).

        It is not for ratios: the rounding error of `next_latents` is divided by `std` here, and `objective.log_ratio`
        has no such error. A step without noise gives +inf at its mean and -inf elsewhere.
        """
        residual = _precise(next_latents) - self._mean(latents, prediction)
        if self.std == 0:
            on_the_mean = (residual == 0).flatten(1).all(1)
            return torch.where(on_the_mean, math.inf, -math.inf).to(residual.dtype)
        return self._log_density(residual / self.std)

    def _mean(self, latents: Float[Tensor, "B ..."], prediction: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        return self.scale * _precise(latents) + self.gain * _precise(prediction)

    def _log_density(self, noise: Float[Tensor, "B ..."]) -> Float[Tensor, " B"]:
        """Compute the mean over D of log N(std z; 0, std^2)."""
        log_std = math.log(self.std) if self.std > 0 else -math.inf
        return -0.5 * noise.square().flatten(1).mean(1) - (log_std + LOG_SQRT_TWO_PI)


def _precise(tensor: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Convert half types to float32; leave float32 and float64 as they are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
