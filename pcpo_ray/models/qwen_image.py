"""Qwen-Image: a transformer that predicts the velocity of packed latents, conditioned by a vision-language model."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from pcpo_ray.config import BACKBONES
from pcpo_ray.data.tensors import Conditioning
from pcpo_ray.errors import ModelError
from pcpo_ray.models import decoding, guidance
from pcpo_ray.models.described import Described
from pcpo_ray.models.flux import Flux
from pcpo_ray.models.pipeline import TOKENS

TEXT_LENGTH = 512  # tokens that texts are cut to, and padded to here
PLACES = 4096  # positions that the network knows


class QwenImage(Flux):
    """Qwen-Image; latents are packed as FLUX.1's."""

    pipeline_class = BACKBONES["qwen_image"].pipeline
    settings: ClassVar = {"patch_size": (2,), "use_additional_t_cond": (False,)}

    @classmethod
    def check(cls, description: Described) -> None:
        network = description.network
        if network.get("guidance_embeds"):
            raise ModelError(
                f"{description.folder / cls.part} has guidance_embeds: a network distilled to be told the guidance "
                "scale, which it is not told here; expected false: take the model that it was distilled from"
            )
        patched = {**network, "out_channels": cls.packed * network.get("out_channels", 16)}  # it gives whole patches
        super().check(dataclasses.replace(description, network=patched))

    @classmethod
    def most_tokens(cls, network: Mapping[str, Any]) -> tuple[int, int] | None:
        most = 2 * (PLACES - TEXT_LENGTH)  # an image's are counted from its middle, and a text's follow
        return most, most

    def text_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"embeds": (TOKENS, self.config.joint_attention_dim), "mask": (TOKENS,)}

    def encode_one(self, text: str) -> Conditioning:
        """Encode as the pipeline does, padded to one length: it pads to the longest text of a batch."""
        pipeline, tokenizer = self.pipeline, self.pipeline.tokenizer
        first, length = pipeline.prompt_template_encode_start_idx, min(tokenizer.model_max_length, TEXT_LENGTH)
        read = tokenizer(
            pipeline.prompt_template_encode.format(text),
            max_length=first + length,
            truncation=True,
            return_tensors="pt",
        )
        states = pipeline.text_encoder(
            input_ids=read.input_ids.to(self.device),
            attention_mask=read.attention_mask.to(self.device),
            output_hidden_states=True,
        ).hidden_states[-1][:, first:]
        mask = torch.arange(length, device=self.device)[None] < states.shape[1]
        return {"embeds": pad(states, (0, 0, 0, length - states.shape[1])), "mask": mask}

    def combined(
        self, conditional: Float[Tensor, "B tokens channels"], unconditional: Float[Tensor, "B tokens channels"]
    ) -> Float[Tensor, "B tokens channels"]:
        """Combine the branches, and give each token the norm of its conditional prediction."""
        return guidance.with_norm_of(conditional, super().combined(conditional, unconditional))

    def forward(
        self, latents: Float[Tensor, "B tokens channels"], timesteps: Float[Tensor, " B"], conditioning: Conditioning
    ) -> Float[Tensor, "B tokens channels"]:
        velocity: Tensor = self.module(
            hidden_states=latents,
            timestep=timesteps.to(latents.dtype) / 1000,
            encoder_hidden_states=conditioning["embeds"],
            encoder_hidden_states_mask=conditioning["mask"],
            img_shapes=[[(1, *self.grid)]] * len(latents),
            return_dict=False,
        )[0]
        return velocity

    def latents_of(self, latents: Float[Tensor, "B tokens channels"]) -> Float[Tensor, "B C h w"]:
        return super().latents_of(latents)[:, :, 0]

    def unscaled(self, latents: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C 1 h w"]:
        config = self.pipeline.vae.config
        std, mean = (decoding.by_channel(values, latents) for values in (config.latents_std, config.latents_mean))
        return (latents / (1 / std) + mean)[:, :, None]  # its VAE knows videos, of which this is one frame
