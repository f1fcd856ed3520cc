"""FLUX.1: a transformer that predicts the velocity of packed latents, with guidance as an input or a second branch."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pcpo_ray.algorithm.schedule import FlowSchedule
from pcpo_ray.config import BACKBONES, Sampling
from pcpo_ray.data.tensors import Conditioning
from pcpo_ray.models import flow
from pcpo_ray.models.image_sizes import cached_by_size
from pcpo_ray.models.pipeline import TOKENS
from pcpo_ray.models.tokens import TokenDenoiser


class Flux(TokenDenoiser):
    """FLUX.1; latents are packed 2 x 2: (h/2 * w/2 tokens, 4 C)."""

    pipeline_class = BACKBONES["flux"].pipeline
    settings: ClassVar = {"patch_size": (1,)}

    @property
    def guided(self) -> bool:
        return not self.distilled and super().guided

    @property
    def distilled(self) -> bool:
        """True if the guidance scale is an input of the network (FLUX.1-dev)."""
        return self.guidance_is_input(self.config)

    @classmethod
    def guidance_is_input(cls, network: Mapping[str, Any]) -> bool:
        return bool(network.get("guidance_embeds"))

    @classmethod
    def schedule_of(cls, scheduler_config: Mapping[str, Any], sampling: Sampling, *, tokens: int) -> FlowSchedule:
        sigmas = np.linspace(1.0, 1 / sampling.steps, sampling.steps)
        return flow.schedule(scheduler_config, sampling, tokens=tokens, sigmas=sigmas.tolist())

    def initial_noise(self, generator: torch.Generator) -> Float[Tensor, "tokens channels"]:
        rows, columns = self.grid
        channels = self.latent_shape[1] // 4
        noise = torch.randn((1, channels, 2 * rows, 2 * columns), generator=generator)
        packed: Tensor = self.pipeline._pack_latents(noise, 1, channels, 2 * rows, 2 * columns)[0]
        return packed

    def text_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"embeds": (TOKENS, self.config.joint_attention_dim), "pooled": (self.config.pooled_projection_dim,)}

    def encode_one(self, text: str) -> Conditioning:
        # the pipeline would pad to 512 tokens even for a model trained on fewer
        length = min(self.pipeline.tokenizer_2.model_max_length, 512)
        embeds, pooled, _ = self.pipeline.encode_prompt(
            text, None, device=self.device, num_images_per_prompt=1, max_sequence_length=length
        )
        return {"embeds": embeds, "pooled": pooled}

    def forward(
        self, latents: Float[Tensor, "B tokens channels"], timesteps: Float[Tensor, " B"], conditioning: Conditioning
    ) -> Float[Tensor, "B tokens channels"]:
        embeds, count = conditioning["embeds"], len(latents)
        guidance = None
        if self.distilled:
            guidance = torch.full((count,), self.sampling.guidance_scale, device=self.device)
        velocity: Tensor = self.module(
            hidden_states=latents,
            timestep=timesteps.to(latents.dtype) / 1000,
            guidance=guidance,
            pooled_projections=conditioning["pooled"],
            encoder_hidden_states=embeds,
            txt_ids=torch.zeros(embeds.shape[1], 3, device=self.device, dtype=embeds.dtype),
            img_ids=self.places.to(embeds.dtype),
            return_dict=False,
        )[0]
        return velocity

    @cached_by_size
    def places(self) -> Float[Tensor, "tokens 3"]:
        """Each token's position, copied to the device once; a copy per call would stall each call."""
        made: Tensor = self.pipeline._prepare_latent_image_ids(1, *self.grid, self.device, torch.float32)
        return made

    def latents_of(self, latents: Float[Tensor, "B tokens channels"]) -> Float[Tensor, "B C h w"]:
        factor = self.pipeline.vae_scale_factor
        unpacked: Tensor = self.pipeline._unpack_latents(latents, self.height, self.width, factor)
        return unpacked
