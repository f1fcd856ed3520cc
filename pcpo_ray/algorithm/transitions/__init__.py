"""One denoising step, which is affine whatever the sampler: three numbers, known before the run starts.

    x_next = scale * x + gain * prediction + std * z,    z ~ N(0, 1)

The only number of a step that its log-probability's answer to the policy depends on is `weight` = |gain| / std.
Notation: B samples; D, the latent's dimensions, all behind the first; log-probabilities are the mean over D.
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
        """w = |gain| / std, how much the policy moves the step in units of its noise; inf for a step without noise."""
        return abs(self.gain) / self.std if self.std > 0 else math.inf

    @property
    def sign(self) -> float:
        """s = sign of -gain: 1 where a larger prediction means a smaller x_next, as with both samplers here."""
        return float((self.gain < 0) - (self.gain > 0))

    def draw(
        self, latents: Float[Tensor, "B ..."], prediction: Float[Tensor, "B ..."], noise: Float[Tensor, "B ..."]
    ) -> tuple[Float[Tensor, "B ..."], Float[Tensor, " B"]]:
        """The next latents, in the dtype of `latents`, and the log-probability of having drawn them.

        The log-probability is that of the noise itself, so rounding x_next to a half type cannot change it. +inf for
        a step without noise, a point mass.
        """
        return self.moved(latents, prediction, noise), self._log_density(_precise(noise))

    def moved(
        self, latents: Float[Tensor, "B ..."], prediction: Float[Tensor, "B ..."], noise: Float[Tensor, "B ..."]
    ) -> Float[Tensor, "B ..."]:
        """The next latents, in the dtype of `latents`: the same bits for the same input, on every device.

        Each of its operations is rounded as IEEE 754 says, element by element, so their order fixes the bits.
        """
        return (self._mean(latents, prediction) + self.std * _precise(noise)).to(latents.dtype)

    def log_prob(
        self, next_latents: Float[Tensor, "B ..."], latents: Float[Tensor, "B ..."], prediction: Float[Tensor, "B ..."]
    ) -> Float[Tensor, " B"]:
        """The log-probability of `next_latents`, with the noise recovered from them (the replay of DDPO, 2305.13301).

        Not for ratios: what rounding did to `next_latents` is divided by `std` here; `objective.log_ratio` has no such
        error. For a step without noise, +inf at its mean and -inf anywhere else.
        """
        residual = _precise(next_latents) - self._mean(latents, prediction)
        if self.std == 0:
            on_the_mean = (residual == 0).flatten(1).all(1)
            return torch.where(on_the_mean, math.inf, -math.inf).to(residual.dtype)
        return self._log_density(residual / self.std)

    def _mean(self, latents: Float[Tensor, "B ..."], prediction: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        return self.scale * _precise(latents) + self.gain * _precise(prediction)

    def _log_density(self, noise: Float[Tensor, "B ..."]) -> Float[Tensor, " B"]:
        """Mean over D of log N(std z; 0, std^2)."""
        log_std = math.log(self.std) if self.std > 0 else -math.inf
        return -0.5 * noise.square().flatten(1).mean(1) - (log_std + LOG_SQRT_TWO_PI)


def _precise(tensor: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Half types as float32; float32 and float64 as they are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
