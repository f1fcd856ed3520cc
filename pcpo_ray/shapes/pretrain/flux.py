"""shapes-flux: a small FLUX.1 of the embedded world. Both text encoders and the transformer are trained together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel

from pcpo_ray.shapes.pretrain import latents, vae
from pcpo_ray.shapes.pretrain.loop import RunningMean, optimise
from pcpo_ray.shapes.pretrain.measure import FLUX_SAMPLING, accuracy, summary
from pcpo_ray.shapes.pretrain.sd import WIDTH, text_encoder
from pcpo_ray.shapes.pretrain.tokenizers import LENGTH, clip_tokenizer, t5_tokenizer

NAME = "shapes-flux"
BATCH = 64
STEPS = 5000
SAVE_EVERY = 500
SHIFT = 1.5  # FLUX's own rule (a larger shift for more tokens) gives about this for 16 tokens
SIDE = 4  # tokens a side: 8 x 8 latents packed 2 x 2


def build(out: Path) -> FluxPipeline:
    """The untrained pipeline around the trained VAE of `out`."""
    tokenizer, tokenizer_2 = clip_tokenizer(), t5_tokenizer()
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer_2),
            d_model=WIDTH,
            d_ff=2 * WIDTH,
            d_kv=32,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
        )
    )
    transformer = FluxTransformer2DModel(
        in_channels=4 * vae.CHANNELS,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=False,
        axes_dims_rope=(8, 12, 12),
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=vae.load(out),
        text_encoder=text_encoder(len(tokenizer), layers=1),
        tokenizer=tokenizer,
        text_encoder_2=t5,
        tokenizer_2=tokenizer_2,
        transformer=transformer,
    )


def train(out: Path, seed: int, steps: int = STEPS, pictures: int = latents.PICTURES, measured: int = 64) -> None:
    """Train shapes-flux and write it to `out`, every SAVE_EVERY steps and at the end.

    Times are uniform: shifted towards noise as in sampling, few would lie where the shapes are settled (below 0.5).
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    data = latents.encode(out, seed, pictures)
    pipeline = build(out)
    clip, t5, transformer = pipeline.text_encoder, pipeline.text_encoder_2, pipeline.transformer
    trained = nn.ModuleList([transformer, clip, t5]).train()
    mean = RunningMean(trained)
    image_ids = pipeline._prepare_latent_image_ids(1, SIDE, SIDE, "cpu", torch.float32)
    text_ids = torch.zeros(LENGTH, 3)

    def loss_of() -> Tensor:
        pictures, texts = data.sample(rng, BATCH)
        clean = pipeline._pack_latents(pictures, BATCH, vae.CHANNELS, 2 * SIDE, 2 * SIDE)
        padded = {"padding": "max_length", "truncation": True, "max_length": LENGTH, "return_tensors": "pt"}
        pooled = clip(pipeline.tokenizer(texts, **padded).input_ids).pooler_output
        embeds = t5(pipeline.tokenizer_2(texts, **padded).input_ids)[0]
        times = torch.from_numpy(rng.random(BATCH)).float()
        noise = torch.randn_like(clean)
        noisy = (1 - times[:, None, None]) * clean + times[:, None, None] * noise
        velocity = transformer(
            hidden_states=noisy,
            timestep=times,
            pooled_projections=pooled,
            encoder_hidden_states=embeds,
            txt_ids=text_ids,
            img_ids=image_ids,
        ).sample
        loss: Tensor = nn.functional.mse_loss(velocity, noise - clean)
        return loss

    def after_step(step: int) -> None:
        mean.update()
        if step % SAVE_EVERY == 0 or step == steps:
            trained.eval()
            with mean.applied():
                pipeline.save_pretrained(out / NAME)
                shares = accuracy(pipeline, measured, **FLUX_SAMPLING)
            trained.train()
            print(f"{NAME} after {step} steps, right in {summary(shares)}", flush=True)

    optimise(NAME, trained, loss_of, steps=steps, rate=1.5e-3, after_step=after_step)
