"""Stable Diffusion XL: a UNet conditioned by two text encoders, their pooled embedding and the image's size."""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from pcpo_ray.config import BACKBONES
from pcpo_ray.data.tensors import Conditioning
from pcpo_ray.models.image_sizes import cached_by_size
from pcpo_ray.models.stable_diffusion import StableDiffusion


class StableDiffusionXL(StableDiffusion):
    """Stable Diffusion XL; latents are (C, h, w)."""

    pipeline_class = BACKBONES["sdxl"].pipeline
    settings: ClassVar = {**StableDiffusion.settings, "addition_embed_type": ("text_time",)}

    def text_shapes(self) -> dict[str, tuple[int, ...]]:
        sizes = 6 * self.config.addition_time_embed_dim
        return {**super().text_shapes(), "pooled": (self.config.projection_class_embeddings_input_dim - sizes,)}

    def encode_one(self, text: str) -> Conditioning:
        embeds, _, pooled, _ = self.pipeline.encode_prompt(text, device=self.device, do_classifier_free_guidance=False)
        return {"embeds": embeds, "pooled": pooled}

    def encode_empty(self) -> Conditioning:
        if self.sampling.negative_prompt or not self.pipeline.config.force_zeros_for_empty_prompt:
            return super().encode_empty()
        return {name: torch.zeros_like(row) for name, row in self.encode_text("").items()}

    @cached_by_size
    def sizes(self) -> Float[Tensor, "1 6"]:
        """Original size, crop corner and target size, for an uncropped image of the size asked for.

        They are copied to the device once; a copy per call would stall each call.
        """
        numbers = [self.height, self.width, 0, 0, self.height, self.width]
        return torch.tensor([numbers], dtype=torch.float32, device=self.device)

    def forward(
        self, latents: Float[Tensor, "B C h w"], timesteps: Float[Tensor, " B"], conditioning: Conditioning
    ) -> Float[Tensor, "B C h w"]:
        pooled = conditioning["pooled"]
        time_ids = self.sizes.to(pooled.dtype).expand(len(latents), -1)
        prediction: Tensor = self.module(
            latents,
            timesteps,
            encoder_hidden_states=conditioning["embeds"],
            added_cond_kwargs={"text_embeds": pooled, "time_ids": time_ids},
            return_dict=False,
        )[0]
        return prediction
