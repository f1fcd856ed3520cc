"""Stable Diffusion 3 and 3.5: a transformer that predicts the velocity, conditioned by three text encoders."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor

from pcpo_ray.algorithm.schedule import FlowSchedule
from pcpo_ray.config import BACKBONES, Sampling
from pcpo_ray.data.tensors import Conditioning
from pcpo_ray.models import flow
from pcpo_ray.models.pipeline import TOKENS, PipelineDenoiser

TEXT_LENGTH = 256  # T5 tokens that the pipeline pads to


class StableDiffusion3(PipelineDenoiser):
    """Stable Diffusion 3; latents are (C, h, w)."""

    pipeline_class = BACKBONES["sd3"].pipeline
    part = "transformer"
    packed = 1
    several_sizes = True

    @classmethod
    def patch_of(cls, network: Mapping[str, Any]) -> int:
        return int(network.get("patch_size", 2))

    @classmethod
    def most_tokens(cls, network: Mapping[str, Any]) -> tuple[int, int] | None:
        most = network.get("pos_embed_max_size")
        return (most, most) if most else None

    @classmethod
    def schedule_of(cls, scheduler_config: Mapping[str, Any], sampling: Sampling, *, tokens: int) -> FlowSchedule:
        # the pipeline leaves the sigmas to the scheduler, which shifts its own already shifted ends once more
        return flow.schedule(scheduler_config, sampling, tokens=tokens, sigmas=None)

    def text_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"embeds": (TOKENS, self.config.joint_attention_dim), "pooled": (self.config.pooled_projection_dim,)}

    def encode_one(self, text: str) -> Conditioning:
        # the pipeline would pad to 256 tokens even for a model trained on fewer
        tokenizer = self.pipeline.tokenizer_3
        length = min(tokenizer.model_max_length, TEXT_LENGTH) if tokenizer is not None else TEXT_LENGTH
        embeds, _, pooled, _ = self.pipeline.encode_prompt(
            text, None, None, device=self.device, do_classifier_free_guidance=False, max_sequence_length=length
        )
        return {"embeds": embeds, "pooled": pooled}

    def forward(
        self, latents: Float[Tensor, "B C h w"], timesteps: Float[Tensor, " B"], conditioning: Conditioning
    ) -> Float[Tensor, "B C h w"]:
        velocity: Tensor = self.module(
            hidden_states=latents,
            timestep=timesteps,
            encoder_hidden_states=conditioning["embeds"],
            pooled_projections=conditioning["pooled"],
            return_dict=False,
        )[0]
        return velocity
