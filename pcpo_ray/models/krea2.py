"""Krea 2: a transformer over packed latents and texts, of which it is given many layers of a language model."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor

from pcpo_ray.config import BACKBONES
from pcpo_ray.data.tensors import Conditioning
from pcpo_ray.errors import ModelError
from pcpo_ray.models.described import Described
from pcpo_ray.models.pipeline import TOKENS
from pcpo_ray.models.qwen_image import QwenImage

TEXT_LENGTH = 512  # tokens that the pipeline pads to, with a mask
DISTILLED_SHIFT = 1.15


class Krea2(QwenImage):
    """Krea 2; latents are packed, and decoded, as Qwen-Image's.

    sampling.guidance_scale is that of all kinds: its pipeline's own number plus 1.
    """

    pipeline_class = BACKBONES["krea2"].pipeline

    @classmethod
    def check(cls, description: Described) -> None:
        super(QwenImage, cls).check(description)
        if (patch := description.pipeline.get("patch_size", 2)) != 2:
            raise ModelError(
                f"{description.folder.name}'s model_index.json has patch_size: {patch}; expected 2, as published"
            )

    @classmethod
    def most_tokens(cls, network: Mapping[str, Any]) -> tuple[int, int] | None:
        return None

    @classmethod
    def step_distilled(cls, description: Described) -> bool:
        return bool(description.pipeline.get("is_distilled"))

    @classmethod
    def scheduler_of(cls, description: Described) -> Mapping[str, Any]:
        if not cls.step_distilled(description):
            return description.scheduler
        return {**description.scheduler, "base_shift": DISTILLED_SHIFT, "max_shift": DISTILLED_SHIFT}

    def text_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"embeds": (TOKENS, self.config.num_text_layers, self.config.text_hidden_dim), "mask": (TOKENS,)}

    def encode_one(self, text: str) -> Conditioning:
        length = min(self.pipeline.tokenizer.model_max_length, TEXT_LENGTH)
        embeds, mask = self.pipeline.encode_prompt(text, self.device, max_sequence_length=length)
        return {"embeds": embeds, "mask": mask}

    def combined(
        self, conditional: Float[Tensor, "B tokens channels"], unconditional: Float[Tensor, "B tokens channels"]
    ) -> Float[Tensor, "B tokens channels"]:
        return super(QwenImage, self).combined(conditional, unconditional)

    def forward(
        self, latents: Float[Tensor, "B tokens channels"], timesteps: Float[Tensor, " B"], conditioning: Conditioning
    ) -> Float[Tensor, "B tokens channels"]:
        embeds = conditioning["embeds"]
        velocity: Tensor = self.module(
            hidden_states=latents,
            encoder_hidden_states=embeds,
            timestep=(timesteps / 1000).to(latents.dtype),
            position_ids=self.pipeline.prepare_position_ids(embeds.shape[1], *self.grid, self.device),
            encoder_attention_mask=conditioning["mask"],
            return_dict=False,
        )[0]
        return velocity

    def latents_of(self, latents: Float[Tensor, "B tokens channels"]) -> Float[Tensor, "B C h w"]:
        unpacked: Tensor = self.pipeline._unpack_latents(latents, self.height, self.width)
        return unpacked[:, :, 0]
