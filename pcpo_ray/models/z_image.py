"""Z-Image: a transformer over image and text tokens together, which is told how much of the noise is gone."""

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
from pcpo_ray.models import flow, joint, z_image_network
from pcpo_ray.models.described import Described
from pcpo_ray.models.joint import SIDE
from pcpo_ray.models.pipeline import PipelineDenoiser
from pcpo_ray.models.z_image_network import MULTIPLE

TEXT_LENGTH = 512  # tokens that texts are cut to
AXES = (1024, 512, 512)  # positions of texts, of rows and of columns, where the network's config does not say them


class ZImage(PipelineDenoiser):
    """Z-Image and Z-Image-Turbo; latents are (C, h, w).

    sampling.guidance_scale is that of all kinds: its pipeline's own number plus 1.
    """

    pipeline_class = BACKBONES["z_image"].pipeline
    part = "transformer"
    packed = 1
    backwards = True
    several_sizes = True

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        network = getattr(self.pipeline, self.part)
        network.forward = functools.partial(z_image_network.forward, network)

        length = self._text_length()
        joint.check_text_places(self.description, self.part, self.config.axes_lens, length, last=length + 1)

    @classmethod
    def check(cls, description: Described) -> None:
        super().check(description)
        network = description.network
        sides, frames = network.get("all_patch_size", [SIDE]), network.get("all_f_patch_size", [1])
        if (SIDE, 1) not in zip(sides, frames, strict=False):
            raise ModelError(
                f"{description.folder / cls.part / 'config.json'} has all_patch_size: {list(sides)} and "
                f"all_f_patch_size: {list(frames)}; expected {SIDE} and 1 among them, with which its pipeline calls it"
            )

    @classmethod
    def most_tokens(cls, network: Mapping[str, Any]) -> tuple[int, int]:
        rows, columns = (network.get("axes_lens") or AXES)[1:]
        return rows, columns

    @classmethod
    def default_size(cls, network: Mapping[str, Any], factor: int) -> tuple[int, int]:
        return 1024, 1024

    @classmethod
    def schedule_of(cls, scheduler_config: Mapping[str, Any], sampling: Sampling, *, tokens: int) -> FlowSchedule:
        sigmas = np.linspace(1.0, 1 / sampling.steps, sampling.steps)
        return flow.schedule(scheduler_config, sampling, tokens=tokens, sigmas=sigmas.tolist())

    def text_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"embeds": (MULTIPLE, self.config.cap_feat_dim), "mask": (MULTIPLE,)}

    def encode_one(self, text: str) -> Conditioning:
        """Encode as the pipeline does, without cutting off what pads the text to one length."""
        tokenizer = self.pipeline.tokenizer
        chat = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True, enable_thinking=True
        )
        read = tokenizer(
            chat, padding="max_length", max_length=self._text_length(), truncation=True, return_tensors="pt"
        )
        mask = read.attention_mask.to(self.device).bool()
        states = self.pipeline.text_encoder(
            input_ids=read.input_ids.to(self.device), attention_mask=mask, output_hidden_states=True
        ).hidden_states
        return {"embeds": states[-2], "mask": mask}

    def _text_length(self) -> int:
        length: int = min(self.pipeline.tokenizer.model_max_length, TEXT_LENGTH) // MULTIPLE * MULTIPLE
        return length

    def forward(
        self, latents: Float[Tensor, "B C h w"], timesteps: Float[Tensor, " B"], conditioning: Conditioning
    ) -> Float[Tensor, "B C h w"]:
        velocity: Tensor = self.module(latents, timesteps / TRAIN_STEPS, conditioning["embeds"], conditioning["mask"])
        return velocity
