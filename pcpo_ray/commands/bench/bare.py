"""The network alone: nothing but its forwards, on inputs that are made beforehand."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pcpo_ray.data.tensors import Conditioning
from pcpo_ray.models.pipeline import PipelineDenoiser
from pcpo_ray.models.policy import Policy


def denoiser_of(policy: Policy) -> PipelineDenoiser:
    """Every model of a config's is one of these."""
    assert isinstance(policy.denoiser, PipelineDenoiser)
    return policy.denoiser


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of the network for B latents: with guidance, both branches in one batch of 2 B."""

    latents: Float[Tensor, "B ..."]
    timesteps: Float[Tensor, " B"]
    conditioning: Conditioning


def call(
    policy: Policy, latents: Float[Tensor, "B ..."], step: int | Int[Tensor, " B"], conditioning: Conditioning
) -> Call:
    """The call by which a policy predicts at a step, or each latent at its own; `conditioning` has B rows."""
    timesteps = policy.timesteps[step].expand(len(latents))
    inputs = latents.to(conditioning["embeds"].dtype)
    if not denoiser_of(policy).guided:
        return Call(latents=inputs, timesteps=timesteps, conditioning=conditioning)
    names = [name for name in conditioning if not name.startswith("negative_")]
    doubled = {name: torch.cat([conditioning[f"negative_{name}"], conditioning[name]]) for name in names}
    return Call(latents=torch.cat([inputs, inputs]), timesteps=torch.cat([timesteps, timesteps]), conditioning=doubled)


def forward(policy: Policy, asked: Call) -> Tensor:
    """What the network gives, under the autocast that the policy predicts with."""
    with torch.autocast(policy.device.type, torch.bfloat16, enabled=policy.mixed):
        return denoiser_of(policy).forward(asked.latents, asked.timesteps, asked.conditioning)


def reference(policy: Policy, asked: Call) -> Tensor:
    """`forward` of the model under the adapter."""
    with policy.denoiser.without_adapter():
        return forward(policy, asked)


def decode(policy: Policy, latents: Float[Tensor, "B ..."]) -> Tensor:
    """What the VAE gives, on the device."""
    denoiser = denoiser_of(policy)
    vae = denoiser.pipeline.vae
    pictures: Tensor = vae.decode(denoiser.latents_of(latents).to(vae.dtype), return_dict=False)[0]
    return pictures
