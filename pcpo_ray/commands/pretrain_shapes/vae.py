"""The VAE both base models share: 64 x 64 pixels to 8 channels of 8 x 8, each of mean 0 and variance 1."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor, nn

from pcpo_ray.commands.pretrain_shapes.data import sample_captions, sample_pictures
from pcpo_ray.commands.pretrain_shapes.loop import optimise

CHANNELS = 8
BATCH = 16
STEPS = 2200
SAVE_EVERY = 200
SHARPEN = (300, 700)  # steps between which the absolute losses come in; from the start they settle on empty pictures
EDGE_WEIGHT = 0.5
KL_WEIGHT = 1e-6
QUIET_START = -6.0  # first log-variance of the latents: at 0 their noise hides the picture for hundreds of steps
FOLDERS = ("shapes-sd/vae", "shapes-flux/vae")


def build() -> AutoencoderKL:
    """The untrained autoencoder, 0.87 million weights."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 48, 64),
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=8,
        sample_size=64,
        scaling_factor=1.0,
        shift_factor=0.0,
    ).to(memory_format=torch.channels_last)
    assert vae.quant_conv is not None
    nn.init.constant_(vae.quant_conv.bias[CHANNELS:], QUIET_START)
    return vae


def edge_loss(drawn: Float[Tensor, "B 3 H W"], decoded: Float[Tensor, "B 3 H W"]) -> Float[Tensor, ""]:
    """Mean absolute difference of the two pictures' horizontal and vertical differences: blur costs, tone does not."""
    error = decoded - drawn
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()


@torch.no_grad()
def standardise(vae: AutoencoderKL, pictures: Float[Tensor, "B 3 64 64"]) -> None:
    """Fold the latents' mean and scale, channel by channel, into the 1 x 1 convolutions on either side of them.

    Afterwards the latents have mean 0 and variance 1 as they are, so scaling_factor is 1 and shift_factor 0.
    """
    assert vae.quant_conv is not None and vae.post_quant_conv is not None
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in pictures.split(64)])
    mean, scale = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    out, back = vae.quant_conv, vae.post_quant_conv
    out.bias[:CHANNELS] = (out.bias[:CHANNELS] - mean) / scale
    out.weight[:CHANNELS] /= scale[:, None, None, None]
    out.bias[CHANNELS:] -= 2 * scale.log()
    back.bias += torch.einsum("oi,i->o", back.weight[:, :, 0, 0], mean)
    back.weight *= scale[:, None, None]


def save(vae: AutoencoderKL, out: Path) -> None:
    """Write the same weights into both pipelines' folders."""
    for folder in FOLDERS:
        vae.save_pretrained(out / folder)


def load(out: Path) -> AutoencoderKL:
    """The trained autoencoder of an output folder, in float32, without gradients."""
    vae = AutoencoderKL.from_pretrained(out / FOLDERS[0], torch_dtype=torch.float32)
    frozen: AutoencoderKL = vae.requires_grad_(False).eval().to(memory_format=torch.channels_last)
    return frozen


def train(out: Path, seed: int, steps: int = STEPS) -> None:
    """Train the autoencoder on drawn pictures and write it to `out`."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    vae = build()
    taken = 0

    def loss_of() -> Tensor:
        drawn = sample_pictures(rng, sample_captions(rng, BATCH))
        posterior = vae.encode(drawn).latent_dist
        decoded = vae.decode(posterior.sample()).sample
        error = decoded - drawn
        sharpness = min(1.0, max(0.0, (taken - SHARPEN[0]) / (SHARPEN[1] - SHARPEN[0])))
        absolute: Tensor = error.abs().mean() + EDGE_WEIGHT * edge_loss(drawn, decoded)
        loss: Tensor = error.square().mean() + sharpness * absolute + KL_WEIGHT * posterior.kl().mean()
        return loss

    def after_step(step: int) -> None:
        nonlocal taken
        taken = step
        if step % SAVE_EVERY == 0:
            save(vae, out)

    optimise("vae", vae, loss_of, steps=steps, rate=1.5e-3, after_step=after_step)
    vae.eval()
    standardise(vae, sample_pictures(rng, sample_captions(rng, 1024)))
    save(vae, out)
