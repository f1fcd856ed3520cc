"""Chroma: FLUX.1's architecture with two branches of guidance, one text encoder and a mask of its tokens."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad

from pcpo_ray.config import BACKBONES
from pcpo_ray.data.tensors import Conditioning
from pcpo_ray.models.flux import Flux
from pcpo_ray.models.pipeline import TOKENS

TEXT_LENGTH = 512  # tokens that the pipeline pads to


class Chroma(Flux):
    """Chroma; latents are packed as FLUX.1's."""

    pipeline_class = BACKBONES["chroma"].pipeline

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if self.model.gradient_checkpointing:
            network: Any = getattr(self.pipeline, self.part)
            checkpointed = network._gradient_checkpointing_func

            def masked(block: nn.Module, *inputs: Tensor) -> Any:
                # diffusers 0.42.1 leaves the mask out for single-stream blocks if it checkpoints them
                return checkpointed(block, *inputs, *([self.seen] if len(inputs) == 3 else []))

            network._gradient_checkpointing_func = masked

    def text_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"embeds": (TOKENS, self.config.joint_attention_dim), "mask": (TOKENS,)}

    def encode_one(self, text: str) -> Conditioning:
        length = min(self.pipeline.tokenizer.model_max_length, TEXT_LENGTH)
        embeds, _, mask, *_ = self.pipeline.encode_prompt(
            text, device=self.device, do_classifier_free_guidance=False, max_sequence_length=length
        )
        return {"embeds": embeds, "mask": mask.bool()}

    def forward(
        self, latents: Float[Tensor, "B tokens channels"], timesteps: Float[Tensor, " B"], conditioning: Conditioning
    ) -> Float[Tensor, "B tokens channels"]:
        embeds = conditioning["embeds"]
        # numbers, as the pipeline has them: the network adds them to the attention's scores
        self.seen = pad(conditioning["mask"].to(latents.dtype), (0, latents.shape[1]), value=1.0)
        velocity: Tensor = self.module(
            hidden_states=latents,
            timestep=timesteps.to(latents.dtype) / 1000,
            encoder_hidden_states=embeds,
            txt_ids=torch.zeros(embeds.shape[1], 3, device=self.device, dtype=embeds.dtype),
            img_ids=self.places.to(embeds.dtype),
            attention_mask=self.seen,
            return_dict=False,
        )[0]
        return velocity
