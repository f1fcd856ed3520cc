"""The network alone: only its forward passes, on inputs made beforehand."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pcpo_ray.data.tensors import Conditioning
from pcpo_ray.models.pipeline import PipelineDenoiser
from pcpo_ray.models.policy import Policy


def denoiser_of(policy: Policy) -> PipelineDenoiser:
    """Return the policy's denoiser; every configured model is a PipelineDenoiser."""
    assert isinstance(policy.denoiser, PipelineDenoiser)
    return policy.denoiser


@dataclass(frozen=True, kw_only=True)
class Call:
    """A call of the network for B latents; with guidance, both branches form one batch of 2 B."""

    latents: Float[Tensor, "B ..."]
    timesteps: Float[Tensor, " B"]
    conditioning: Conditioning


def call(
    policy: Policy, latents: Float[Tensor, "B ..."], step: int | Int[Tensor, " B"], conditioning: Conditioning
) -> Call:
    """Make the call by which a policy predicts at one index or at one per latent; `conditioning` has B rows."""
    timesteps = policy.timesteps[step].expand(len(latents))
    inputs = latents.to(conditioning["embeds"].dtype)
    if not denoiser_of(policy).guided:
        return Call(latents=inputs, timesteps=timesteps, conditioning=conditioning)
    names = [name for name in conditioning if not name.startswith("negative_")]
    doubled = {name: torch.cat([conditioning[f"negative_{name}"], conditioning[name]]) for name in names}
    return Call(latents=torch.cat([inputs, inputs]), timesteps=torch.cat([timesteps, timesteps]), conditioning=doubled)


def forward(policy: Policy, asked: Call) -> Tensor:
    """Run the network under the policy's autocast."""
    with torch.autocast(policy.device.type, torch.bfloat16, enabled=policy.mixed):
        return denoiser_of(policy).forward(asked.latents, asked.timesteps, asked.conditioning)


def reference(policy: Policy, asked: Call) -> Tensor:
    """Run `forward` on the base model, without the adapter."""
    with policy.denoiser.without_adapter():
        return forward(policy, asked)


def decode(policy: Policy, latents: Float[Tensor, "B ..."]) -> Tensor:
    """Decode with the VAE, on the device."""
    denoiser = denoiser_of(policy)
    vae = denoiser.pipeline.vae
    with policy.vae.awake():
        images: Tensor = vae.decode(denoiser.latents_of(latents).to(vae.dtype), return_dict=False)[0]
    return images
