"""FLUX.2 klein: a transformer that predicts the velocity of patches of 2 x 2 latents, given a language model's text."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pcpo_ray.algorithm.schedule import FlowSchedule
from pcpo_ray.config import BACKBONES, Sampling
from pcpo_ray.data.tensors import Conditioning
from pcpo_ray.errors import ModelError
from pcpo_ray.models import decoding, flow
from pcpo_ray.models.described import Described
from pcpo_ray.models.pipeline import TOKENS
from pcpo_ray.models.tokens import TokenDenoiser

TEXT_LENGTH = 512  # tokens that the pipeline pads to, without a mask


class Flux2Klein(TokenDenoiser):
    """FLUX.2 klein; latents are patches of 2 x 2: (h/2 * w/2 tokens, 4 C)."""

    pipeline_class = BACKBONES["flux2_klein"].pipeline
    settings: ClassVar = {"patch_size": (1,)}

    @property
    def guided(self) -> bool:
        return not self.step_distilled(self.description) and super().guided

    @classmethod
    def step_distilled(cls, description: Described) -> bool:
        return bool(description.pipeline.get("is_distilled"))

    @classmethod
    def check_sampling(cls, description: Described, sampling: Sampling) -> None:
        super().check_sampling(description, sampling)
        if cls.step_distilled(description) and sampling.guidance_scale > 1:
            raise ModelError(
                f"sampling.guidance_scale is {sampling.guidance_scale}, and {description.folder.name} was distilled to "
                "do without (its model_index.json has is_distilled); set sampling.guidance_scale=1, or take the base"
            )

    @classmethod
    def schedule_of(cls, scheduler_config: Mapping[str, Any], sampling: Sampling, *, tokens: int) -> FlowSchedule:
        from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

        sigmas = np.linspace(1.0, 1 / sampling.steps, sampling.steps)
        mu = compute_empirical_mu(tokens, sampling.steps)
        return flow.schedule(scheduler_config, sampling, tokens=tokens, sigmas=sigmas.tolist(), mu=mu)

    def initial_noise(self, generator: torch.Generator) -> Float[Tensor, "tokens channels"]:
        tokens, channels = self.latent_shape
        return torch.randn((1, channels, tokens), generator=generator)[0].T.contiguous()

    def text_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"embeds": (TOKENS, self.config.joint_attention_dim)}

    def encode_one(self, text: str) -> Conditioning:
        length = min(self.tokenizer.model_max_length, TEXT_LENGTH)
        return {"embeds": self.pipeline.encode_prompt(text, self.device, max_sequence_length=length)[0]}

    @property
    def tokenizer(self) -> Any:
        return self.pipeline.tokenizer

    def forward(
        self, latents: Float[Tensor, "B tokens channels"], timesteps: Float[Tensor, " B"], conditioning: Conditioning
    ) -> Float[Tensor, "B tokens channels"]:
        embeds, (rows, columns) = conditioning["embeds"], self.grid
        velocity: Tensor = self.module(
            hidden_states=latents,
            timestep=timesteps.to(latents.dtype) / 1000,
            guidance=self.guidance(len(latents)),
            encoder_hidden_states=embeds,
            txt_ids=self._places(1, 1, embeds.shape[1]),
            img_ids=self._places(rows, columns, 1),
            return_dict=False,
        )[0]
        return velocity

    def guidance(self, count: int) -> Float[Tensor, " B"] | None:
        """Return what the network is told of the guidance scale."""
        return None

    def _places(self, rows: int, columns: int, tokens: int) -> Float[Tensor, "places 4"]:
        """List the positions of image tokens and of text tokens: frame, row, column, place in the text."""
        counts = [torch.arange(count, device=self.device) for count in (1, rows, columns, tokens)]
        return torch.stack(torch.meshgrid(*counts, indexing="ij"), dim=-1).reshape(-1, 4)

    def latents_of(self, latents: Float[Tensor, "B tokens channels"]) -> Float[Tensor, "B channels rows columns"]:
        rows, columns = self.grid
        return latents.transpose(1, 2).reshape(len(latents), -1, rows, columns)

    def unscaled(self, latents: Float[Tensor, "B channels rows columns"]) -> Float[Tensor, "B C h w"]:
        vae = self.pipeline.vae
        mean, std = vae.bn.running_mean, (vae.bn.running_var + vae.config.batch_norm_eps).sqrt()
        whole: Tensor = self.pipeline._unpatchify_latents(
            latents * decoding.by_channel(std, latents) + decoding.by_channel(mean, latents)
        )
        return whole
