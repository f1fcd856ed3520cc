"""FLUX.2-dev: the architecture of FLUX.2 klein, with the guidance scale as an input."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pcpo_ray.config import BACKBONES
from pcpo_ray.errors import ModelError
from pcpo_ray.models.described import Described
from pcpo_ray.models.flux2 import Flux2Klein


class Flux2Dev(Flux2Klein):
    """FLUX.2-dev, whose network takes the guidance scale as an input."""

    pipeline_class = BACKBONES["flux2_dev"].pipeline

    @property
    def guided(self) -> bool:
        return False

    @classmethod
    def guidance_is_input(cls, network: Mapping[str, Any]) -> bool:
        return True

    @classmethod
    def check(cls, description: Described) -> None:
        super().check(description)
        if not description.network.get("guidance_embeds", True):
            raise ModelError(
                f"{description.folder / cls.part} has guidance_embeds: false; expected a network that is told the "
                "guidance scale, as FLUX.2-dev: for a FLUX.2 klein take model.kind=flux2_klein and its own folder"
            )

    @property
    def tokenizer(self) -> Any:
        return self.pipeline.tokenizer.tokenizer  # of a processor, which images pass too

    def guidance(self, count: int) -> Float[Tensor, " B"]:
        return torch.full((count,), self.sampling.guidance_scale, device=self.device)
