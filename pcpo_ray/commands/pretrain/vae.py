"""The VAE that a world's base models share: pixels to latents whose channels have mean 0 and variance 1 each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor, nn

from pcpo_ray.commands.pretrain.loop import optimise
from pcpo_ray.commands.pretrain.world import World

CHANNELS = 8
BATCH = 16
SAVE_EVERY = 200
SHARPEN = (300, 700)  # steps between which the absolute losses come in; from the start they settle on empty images
EDGE_WEIGHT = 0.5
KL_WEIGHT = 1e-6
QUIET_START = -6.0  # first log-variance of the latents: at 0 their noise hides the image for hundreds of steps
PIPELINES = ("sd", "flux")


def build(world: World) -> AutoencoderKL:
    """The untrained autoencoder."""
    levels = len(world.vae_channels)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=world.vae_channels,
        layers_per_block=1,
        latent_channels=world.latent_channels,
        norm_num_groups=8,
        sample_size=max(world.height, world.width),
        scaling_factor=1.0,
        shift_factor=0.0,
    ).to(memory_format=torch.channels_last)
    assert vae.quant_conv is not None
    nn.init.constant_(vae.quant_conv.bias[world.latent_channels :], QUIET_START)
    return vae


def edge_loss(drawn: Float[Tensor, "B 3 H W"], decoded: Float[Tensor, "B 3 H W"]) -> Float[Tensor, ""]:
    """Mean absolute difference of the two images' horizontal and vertical differences: blur costs, tone does not."""
    error = decoded - drawn
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()


@torch.no_grad()
def standardise(vae: AutoencoderKL, images: Float[Tensor, "B 3 H W"]) -> None:
    """Fold the latents' mean and scale, channel by channel, into the 1 x 1 convolutions on either side of them.

    Afterwards the latents have mean 0 and variance 1 as they are, so scaling_factor is 1 and shift_factor 0.
    """
    assert vae.quant_conv is not None and vae.post_quant_conv is not None
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in images.split(64)])
    channels = latents.shape[1]
    mean, scale = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    out, back = vae.quant_conv, vae.post_quant_conv
    out.bias[:channels] = (out.bias[:channels] - mean) / scale
    out.weight[:channels] /= scale[:, None, None, None]
    out.bias[channels:] -= 2 * scale.log()
    back.bias += torch.einsum("oi,i->o", back.weight[:, :, 0, 0], mean)
    back.weight *= scale[:, None, None]


def save(world: World, vae: AutoencoderKL, out: Path) -> None:
    """Write the same weights into both pipelines' folders."""
    for kind in PIPELINES:
        vae.save_pretrained(out / f"{world.name}-{kind}" / "vae")


def load(world: World, out: Path) -> AutoencoderKL:
    """The trained autoencoder of an output folder, in float32, without gradients."""
    vae = AutoencoderKL.from_pretrained(out / f"{world.name}-{PIPELINES[0]}" / "vae", torch_dtype=torch.float32)
    frozen: AutoencoderKL = vae.requires_grad_(False).eval().to(memory_format=torch.channels_last)
    return frozen


def train(world: World, out: Path, seed: int, steps: int) -> None:
    """Train the autoencoder on drawn images and write it to `out`."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    vae = build(world)
    taken = 0

    def loss_of() -> Tensor:
        drawn = world.images(rng, world.sample(rng, BATCH, "train"))
        posterior = vae.encode(drawn).latent_dist
        decoded = vae.decode(posterior.sample()).sample
        error = decoded - drawn
        sharpness = min(1.0, max(0.0, (taken - SHARPEN[0]) / (SHARPEN[1] - SHARPEN[0])))
        absolute: Tensor = error.abs().mean() + EDGE_WEIGHT * edge_loss(drawn, decoded)
        loss: Tensor = error.square().mean() + sharpness * absolute + KL_WEIGHT * posterior.kl().mean()
        return loss

    def after_step(step: int) -> bool:
        nonlocal taken
        taken = step
        if step % SAVE_EVERY == 0:
            save(world, vae, out)
        return False

    optimise("vae", vae, loss_of, steps=steps, rate=1.5e-3, after_step=after_step)
    vae.eval()
    standardise(vae, world.images(rng, world.sample(rng, 1024, "train")))
    save(world, vae, out)
