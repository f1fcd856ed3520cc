"""The base class of transformers whose latents are a list of tokens, one for each patch of 2 x 2 latents."""

from collections.abc import Mapping
from typing import Any

from pcpo_ray.models.pipeline import PipelineDenoiser


class TokenDenoiser(PipelineDenoiser):
    """A transformer over tokens; latents are (h/2 * w/2 tokens, 4 C)."""

    part = "transformer"
    packed = 4
    several_sizes = True

    @property
    def grid(self) -> tuple[int, int]:
        """The number of tokens down and across."""
        factor = 2 * self.pipeline.vae_scale_factor
        return self.height // factor, self.width // factor

    @property
    def latent_shape(self) -> tuple[int, ...]:
        rows, columns = self.grid
        return (rows * columns, self.config.in_channels)

    @classmethod
    def default_size(cls, network: Mapping[str, Any], factor: int) -> tuple[int, int]:
        return 128 * factor, 128 * factor
