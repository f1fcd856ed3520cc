"""A network for whose learning one rank has no memory."""

import torch

from pcpo_ray.models.stable_diffusion import StableDiffusion


class WithoutRoom(StableDiffusion):
    def forward(self, latents, timesteps, conditioning):
        if torch.is_grad_enabled() and torch.distributed.is_initialized() and torch.distributed.get_rank() == 1:
            raise torch.OutOfMemoryError("no room for 3 GiB")
        return super().forward(latents, timesteps, conditioning)
