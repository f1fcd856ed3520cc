"""Qwen-Image 2.1: a transformer over image and text tokens together, whose VAE knows transparency."""

import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from pcpo_ray.algorithm.schedule import FlowSchedule
from pcpo_ray.config import BACKBONES, Sampling
from pcpo_ray.data.tensors import Conditioning
from pcpo_ray.errors import ModelError
from pcpo_ray.models import flow, qwen_image_21_network
from pcpo_ray.models.described import Described
from pcpo_ray.models.pipeline import TOKENS, PipelineDenoiser

TEXT_LENGTH = 512  # tokens that texts are cut to, and padded to; the pipeline does neither
BEFORE = 1024  # positions before an image's middle that the network knows
FACTOR = 16  # pixels a side of one latent, whatever the VAE's config says
SIGMAS = "_sample_sigmas"
"""The key under which the pipeline's own times are handed on, beside the scheduler's own keys."""


class QwenImage21(PipelineDenoiser):
    """Qwen-Image 2.1; latents are (C, h, w), each a token."""

    pipeline_class = BACKBONES["qwen_image_21"].pipeline
    part = "transformer"
    packed = 1
    several_sizes = True
    settings: ClassVar = {"patch_size": (1,)}

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        network = getattr(self.pipeline, self.part)
        for block in network.transformer_blocks:
            block.attn.set_processor(qwen_image_21_network.Attention())
        network.forward = functools.partial(qwen_image_21_network.forward, network)

    @classmethod
    def check(cls, description: Described) -> None:
        super().check(description)
        if description.factor != FACTOR:
            raise ModelError(
                f"{description.folder.name} has latents of {description.factor} pixels a side; expected {FACTOR}, with "
                "which its pipeline reckons: take Qwen-Image 2.1's own VAE"
            )

    @classmethod
    def default_size(cls, network: Mapping[str, Any], factor: int) -> tuple[int, int]:
        return 1024, 1024

    @classmethod
    def patch_of(cls, network: Mapping[str, Any]) -> int:
        return 1

    @classmethod
    def most_tokens(cls, network: Mapping[str, Any]) -> tuple[int, int]:
        return 2 * BEFORE, 2 * BEFORE

    @classmethod
    def step_distilled(cls, description: Described) -> bool:
        return bool(description.pipeline.get("sample_sigmas"))

    @classmethod
    def check_sampling(cls, description: Described, sampling: Sampling) -> None:
        super().check_sampling(description, sampling)
        own = description.pipeline.get("sample_sigmas")
        if own and sampling.shift is None and sampling.steps != len(own):
            raise ModelError(
                f"sampling.steps is {sampling.steps}, and {description.folder.name} takes {len(own)} at times of its "
                f"own (sample_sigmas in its model_index.json); set sampling.steps={len(own)}, or sampling.shift for an "
                "even grid"
            )

    @classmethod
    def scheduler_of(cls, description: Described) -> Mapping[str, Any]:
        return {**description.scheduler, SIGMAS: description.pipeline.get("sample_sigmas")}

    @classmethod
    def schedule_of(cls, scheduler_config: Mapping[str, Any], sampling: Sampling, *, tokens: int) -> FlowSchedule:
        sigmas = scheduler_config.get(SIGMAS) or np.linspace(1.0, 1 / sampling.steps, sampling.steps).tolist()
        return flow.schedule(scheduler_config, sampling, tokens=tokens, sigmas=sigmas)

    def text_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"embeds": (TOKENS, self.config.context_in_dim), "mask": (TOKENS,)}

    def encode_one(self, text: str) -> Conditioning:
        """Encode as the pipeline does: what goes into the last norm, without the instruction's tokens."""
        pipeline, tokenizer = self.pipeline, self.pipeline.processor.tokenizer
        length = min(tokenizer.model_max_length, TEXT_LENGTH)
        read = tokenizer(pipeline.prompt_template_t2i.format(text or " "), return_tensors="pt")
        model = pipeline.text_encoder.model.language_model
        hook = model.norm.register_forward_hook(lambda module, inputs, output: inputs[0])
        try:
            states = model(
                input_ids=read.input_ids.to(self.device), attention_mask=read.attention_mask.to(self.device)
            ).last_hidden_state[:, pipeline._drop_idx :][:, :length]
        finally:
            hook.remove()
        mask = torch.arange(length, device=self.device)[None] < states.shape[1]
        return {"embeds": pad(states, (0, 0, 0, length - states.shape[1])), "mask": mask}

    def forward(
        self, latents: Float[Tensor, "B C h w"], timesteps: Float[Tensor, " B"], conditioning: Conditioning
    ) -> Float[Tensor, "B C h w"]:
        times = timesteps.to(latents.dtype) / 1000
        velocity: Tensor = self.module(latents, times, conditioning["embeds"], conditioning["mask"])
        return velocity

    def unscaled(self, latents: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C 1 h w"]:
        return super().unscaled(latents)[:, :, None]  # its VAE knows videos, of which this is one frame
