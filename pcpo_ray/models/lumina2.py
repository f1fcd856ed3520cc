"""Lumina-Image 2.0: a transformer over image and text tokens together, with an instruction before each prompt."""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from pcpo_ray.algorithm.schedule import TRAIN_STEPS, FlowSchedule
from pcpo_ray.config import BACKBONES, Sampling
from pcpo_ray.data.tensors import Conditioning
from pcpo_ray.errors import ModelError
from pcpo_ray.models import flow, guidance, joint, lumina2_network
from pcpo_ray.models.described import Described
from pcpo_ray.models.pipeline import TOKENS, PipelineDenoiser
from pcpo_ray.models.texts import PLAIN

TEXT_LENGTH = 256  # tokens that the pipeline pads to, with a mask
AXES = (300, 512, 512)  # positions of texts, of rows and of columns, where the network's config does not say them
FACTOR = 8  # pixels a side of one latent, whatever the VAE's config says


class Lumina2(PipelineDenoiser):
    """Lumina-Image 2.0; latents are (C, h, w)."""

    pipeline_class = BACKBONES["lumina2"].pipeline
    part = "transformer"
    packed = 1
    backwards = True
    several_sizes = True

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        network = getattr(self.pipeline, self.part)
        network.forward = functools.partial(lumina2_network.forward, network)

        length = self._text_length()
        joint.check_text_places(self.description, self.part, self.config.axes_lens, length, last=length)

    @classmethod
    def most_tokens(cls, network: Mapping[str, Any]) -> tuple[int, int]:
        rows, columns = (network.get("axes_lens") or AXES)[1:]
        return rows, columns

    @classmethod
    def check(cls, description: Described) -> None:
        super().check(description)
        found = description.factor, description.network.get("patch_size", joint.SIDE)
        if found != (FACTOR, joint.SIDE):
            raise ModelError(
                f"{description.folder.name} has latents of {found[0]} pixels and tokens of {found[1]} latents a side; "
                f"expected {FACTOR} and {joint.SIDE}, with which its pipeline reckons: take Lumina-Image 2.0's own VAE "
                "and transformer"
            )

    @classmethod
    def tokens_in(cls, description: Described, height: int, width: int) -> int:
        # what the pipeline takes for their number is that of the latents' channels
        return int(description.network.get("in_channels", 16))

    @classmethod
    def schedule_of(cls, scheduler_config: Mapping[str, Any], sampling: Sampling, *, tokens: int) -> FlowSchedule:
        sigmas = np.linspace(1.0, 1 / sampling.steps, sampling.steps)
        return flow.schedule(scheduler_config, sampling, tokens=tokens, sigmas=sigmas.tolist())

    def text_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"embeds": (TOKENS, self.config.cap_feat_dim), "mask": (TOKENS,)}

    def encode_empty(self) -> Conditioning:
        return self.encode_text(PLAIN + self.sampling.negative_prompt)

    def encode_one(self, text: str) -> Conditioning:
        pipeline = self.pipeline
        instruction = "" if text.startswith(PLAIN) else f"{pipeline.system_prompt} <Prompt Start> "
        embeds, mask = pipeline._get_gemma_prompt_embeds(
            instruction + text.removeprefix(PLAIN), self.device, max_sequence_length=self._text_length()
        )
        return {"embeds": embeds, "mask": mask.bool()}

    def _text_length(self) -> int:
        length: int = min(self.pipeline.tokenizer.model_max_length, TEXT_LENGTH)
        return length

    def combined(
        self, conditional: Float[Tensor, "B C h w"], unconditional: Float[Tensor, "B C h w"]
    ) -> Float[Tensor, "B C h w"]:
        """Combine the branches, and give each row of latents the norm of its conditional prediction."""
        return guidance.with_norm_of(conditional, super().combined(conditional, unconditional))

    def forward(
        self, latents: Float[Tensor, "B C h w"], timesteps: Float[Tensor, " B"], conditioning: Conditioning
    ) -> Float[Tensor, "B C h w"]:
        velocity: Tensor = self.module(latents, timesteps / TRAIN_STEPS, conditioning["embeds"], conditioning["mask"])
        return velocity
