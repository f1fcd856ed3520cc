"""The mismatch of sampler and learner: log-ratios between their predictions where both have the same weights.

Equal weights do not make equal predictions: another kernel, batch or dtype rounds otherwise. A pair's mismatch is the
log-ratio of the learner's Gaussian of the sampler's step to the sampler's, at the x_next that was drawn, in mean over
the latents' dimensions (objective.py). Its rms over pairs is what is watched: its mean is near 0 by itself.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


class Mismatch:
    """The mismatch of each of T timesteps, as sums that add up over ranks and maxima of which the largest counts."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.noted: list[tuple[int, Float[Tensor, " B"]]] = []

    def add(self, index: int, log_ratio: Float[Tensor, " B"]) -> None:
        """Note B pairs at the timestep `index`. This does not wait for the device."""
        self.noted.append((index, log_ratio))

    def sums(self, device: torch.device) -> tuple[Float[Tensor, "2 T"], Float[Tensor, " T"]]:
        """Return the counts and sums of squares of each timestep, and its largest |log-ratio|, on the device."""
        sums = torch.zeros(2, self.steps, dtype=torch.float64, device=device)
        largest = torch.zeros(self.steps, dtype=torch.float64, device=device)
        for index, log_ratio in self.noted:
            values = log_ratio.double()
            sums[:, index] += torch.stack([torch.ones_like(values).sum(), values.square().sum()])
            largest[index] = torch.maximum(largest[index], values.abs().max())
        return sums, largest


def by_timestep(sums: Float[Tensor, "2 T"]) -> list[float | None]:
    """Compute the rms at each timestep from counts and sums of squares; None where nothing was counted."""
    return [math.sqrt(squares / count) if count else None for count, squares in sums.T.tolist()]


def overall(sums: Float[Tensor, "2 T"], largest: Float[Tensor, " T"]) -> dict[str, float] | None:
    """Summarise all timesteps: `rms`, and the `largest` |log-ratio| of a pair; None if nothing was counted."""
    count, squares = sums.sum(1).tolist()
    return {"rms": math.sqrt(squares / count), "largest": float(largest.max())} if count else None


def worst(values: Sequence[float | None]) -> tuple[int, float] | None:
    """Return the index of the timestep with the largest rms, and that rms; a NaN is the largest of all."""
    known = [(index, value) for index, value in enumerate(values) if value is not None]
    return max(known, key=lambda one: (math.isnan(one[1]), one[1]), default=None)
