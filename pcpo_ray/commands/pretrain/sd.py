"""The diffusion model of a world: a small Stable Diffusion. Text encoder and UNet are trained together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from pcpo_ray.commands.pretrain import latents, vae
from pcpo_ray.commands.pretrain.loop import RunningMean, optimise
from pcpo_ray.commands.pretrain.measure import saving
from pcpo_ray.commands.pretrain.tokenizers import LENGTH, clip_tokenizer
from pcpo_ray.commands.pretrain.world import World

WIDTH = 128
BATCH = 64
DROPPED = 0.1  # fraction of empty captions, so that guidance has an unconditional branch
# Where things stand is settled at high noise, which the plain loss on the noise hardly counts: an error there moves the
# clean latents by (1 - alpha_bar) / alpha_bar as much. 1 / alpha_bar is the loss on the velocity (2202.00512, 4).
LARGEST_LOSS_WEIGHT = 5.0


def text_encoder(vocabulary: int, layers: int = 2) -> CLIPTextModel:
    """An untrained CLIP text encoder; the end token, which pads, is the last of the vocabulary."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=WIDTH,
            projection_dim=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            pad_token_id=vocabulary - 1,
        )
    )


def build(world: World, out: Path) -> StableDiffusionPipeline:
    """The untrained pipeline around the trained VAE of `out`."""
    tokenizer = clip_tokenizer(world)
    height, width = world.latent_size
    unet = UNet2DConditionModel(
        sample_size=height if height == width else (height, width),
        in_channels=world.latent_channels,
        out_channels=world.latent_channels,
        down_block_types=("CrossAttnDownBlock2D",) * len(world.unet_channels),
        up_block_types=("CrossAttnUpBlock2D",) * len(world.unet_channels),
        block_out_channels=world.unet_channels,
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    return StableDiffusionPipeline(
        vae=vae.load(world, out),
        text_encoder=text_encoder(len(tokenizer)),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def train(world: World, out: Path, seed: int, steps: int, images: int = latents.IMAGES, seen: int = 64) -> None:
    """Train the diffusion model and write it to `out`, now and then and at the end (measure.saving)."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    data = latents.encode(world, out, seed, images)
    pipeline = build(world, out)
    unet, encoder, tokenizer = pipeline.unet.train(), pipeline.text_encoder.train(), pipeline.tokenizer
    alpha_bar = pipeline.scheduler.alphas_cumprod
    name = f"{world.name}-sd"
    both = nn.ModuleList([unet, encoder])
    mean = RunningMean(both)

    def loss_of() -> Tensor:
        clean, texts = data.sample(rng, BATCH, dropped=DROPPED)
        tokens = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        timesteps = torch.from_numpy(rng.integers(len(alpha_bar), size=BATCH))
        noise = torch.randn_like(clean)
        level = alpha_bar[timesteps, None, None, None]
        noisy = level.sqrt() * clean + (1 - level).sqrt() * noise
        predicted = unet(noisy, timesteps, encoder_hidden_states=encoder(tokens)[0]).sample
        weight = (1 / level).clamp(max=LARGEST_LOSS_WEIGHT)
        loss: Tensor = (weight * (predicted - noise) ** 2).mean()
        return loss

    after_step = saving(world, "sd", pipeline, both, mean, out, steps=steps, seen=seen)
    muon = [encoder, unet] if world.spelled else []
    optimise(name, both, loss_of, steps=steps, rate=1.5e-3, muon=muon, after_step=after_step)
