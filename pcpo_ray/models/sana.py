"""SANA: a linear transformer over latents of 32 x 32 pixels, conditioned by Gemma with an instruction."""

import inspect
from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor

from pcpo_ray.algorithm.schedule import FlowSchedule
from pcpo_ray.config import BACKBONES, Sampling
from pcpo_ray.data.tensors import Conditioning
from pcpo_ray.errors import ModelError
from pcpo_ray.models import flow, schedulers
from pcpo_ray.models.described import Described
from pcpo_ray.models.pipeline import TOKENS, PipelineDenoiser
from pcpo_ray.models.texts import PLAIN

TEXT_LENGTH = 300  # tokens that the pipeline pads to, with a mask


class Sana(PipelineDenoiser):
    """SANA; latents are (C, h, w).

    It is sampled by Euler's method with the shift of its own solver, which takes steps of second order.
    """

    pipeline_class = BACKBONES["sana"].pipeline
    part = "transformer"
    packed = 1
    several_sizes = True

    @classmethod
    def check(cls, description: Described) -> None:
        super().check(description)
        if description.network.get("guidance_embeds"):
            raise ModelError(
                f"{description.folder / cls.part} has guidance_embeds: a SANA-Sprint, distilled for steps of another "
                "kind; expected false: take a SANA, which it was distilled from"
            )

    @classmethod
    def patch_of(cls, network: Mapping[str, Any]) -> int:
        return int(network.get("patch_size", 1))

    @classmethod
    def schedule_of(cls, scheduler_config: Mapping[str, Any], sampling: Sampling, *, tokens: int) -> FlowSchedule:
        # the pipeline leaves the sigmas to the scheduler
        return flow.schedule(schedulers.as_euler(scheduler_config), sampling, tokens=tokens, sigmas=None)

    def text_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"embeds": (TOKENS, self.config.caption_channels), "mask": (TOKENS,)}

    def encode_empty(self) -> Conditioning:
        return self.encode_text(PLAIN + self.sampling.negative_prompt)

    def encode_one(self, text: str) -> Conditioning:
        instruction = inspect.signature(type(self.pipeline).__call__).parameters["complex_human_instruction"].default
        embeds, mask, _, _ = self.pipeline.encode_prompt(
            text.removeprefix(PLAIN),
            do_classifier_free_guidance=False,
            device=self.device,
            max_sequence_length=min(self.pipeline.tokenizer.model_max_length, TEXT_LENGTH),
            complex_human_instruction=None if text.startswith(PLAIN) else instruction,
        )
        return {"embeds": embeds, "mask": mask.bool()}

    def forward(
        self, latents: Float[Tensor, "B C h w"], timesteps: Float[Tensor, " B"], conditioning: Conditioning
    ) -> Float[Tensor, "B C h w"]:
        velocity: Tensor = self.module(
            latents,
            encoder_hidden_states=conditioning["embeds"],
            encoder_attention_mask=conditioning["mask"],
            timestep=timesteps * self.config.timestep_scale,
            return_dict=False,
        )[0]
        return velocity
